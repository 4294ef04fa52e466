//! Numbers that golden cases keep in a safetensors file beside them.

use crate::file::GoldenError;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The tensors of a safetensors file, by key.
#[derive(Debug, Clone)]
pub struct References {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl References {
    /// Reads a file.
    ///
    /// # Errors
    /// [`GoldenError::Read`] and [`GoldenError::Tensors`].
    pub fn open(path: &Path) -> Result<Self, GoldenError> {
        let bytes = std::fs::read(path).map_err(|source| GoldenError::Read { path: path.into(), source })?;
        let references = Self { path: path.into(), bytes };
        references.parse()?;
        Ok(references)
    }

    /// A tensor in the kind it is stored in, on the CPU.
    ///
    /// # Errors
    /// [`GoldenError::Field`] if there is none, or if its type is not float32, float64 or int64.
    pub fn tensor(&self, key: &str) -> Result<Tensor, GoldenError> {
        let file = self.parse()?;
        let view = file.tensor(key).map_err(|error| self.bad(key, error))?;
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::I64 => Kind::Int64,
            other => return Err(self.bad(key, format!("type {other:?} is not read"))),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
    }

    /// A tensor's elements in row-major order, as `f64`.
    ///
    /// # Errors
    /// Those of [`References::tensor`].
    pub fn f64s(&self, key: &str) -> Result<Vec<f64>, GoldenError> {
        f64s(&self.tensor(key)?)
    }

    /// A tensor's elements in row-major order, as `i64`.
    ///
    /// # Errors
    /// Those of [`References::tensor`], and [`GoldenError::Field`] for numbers that are no integers.
    pub fn i64s(&self, key: &str) -> Result<Vec<i64>, GoldenError> {
        let tensor = self.tensor(key)?;
        if tensor.f_kind()? != Kind::Int64 {
            return Err(self.bad(key, "holds no integers"));
        }
        Ok(Vec::<i64>::try_from(tensor.f_reshape([-1])?)?)
    }

    fn parse(&self) -> Result<SafeTensors<'_>, GoldenError> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|source| GoldenError::Tensors { path: self.path.clone(), source })
    }

    fn bad(&self, key: &str, reason: impl ToString) -> GoldenError {
        GoldenError::Field { path: self.path.clone(), field: key.to_owned(), reason: reason.to_string() }
    }
}

/// The elements of any tensor in row-major order, as `f64`.
///
/// # Errors
/// [`GoldenError::Torch`].
pub fn f64s(tensor: &Tensor) -> Result<Vec<f64>, GoldenError> {
    Ok(Vec::<f64>::try_from(tensor.f_to_kind(Kind::Double)?.f_reshape([-1])?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    #[test]
    fn tensors_come_back_as_they_were_stored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.safetensors");
        let floats: Vec<u8> = [0.5f32, -1.5].iter().flat_map(|x| x.to_le_bytes()).collect();
        let ints: Vec<u8> = [7i64, -100].iter().flat_map(|x| x.to_le_bytes()).collect();
        let views = [
            ("a.logits", TensorView::new(Dtype::F32, vec![1, 2], &floats).unwrap()),
            ("a.labels", TensorView::new(Dtype::I64, vec![2], &ints).unwrap()),
        ];
        safetensors::serialize_to_file(views, None, &path).unwrap();

        let references = References::open(&path).unwrap();
        assert_eq!(references.tensor("a.logits").unwrap().size(), [1, 2]);
        assert_eq!(references.f64s("a.logits").unwrap(), [0.5, -1.5]);
        assert_eq!(references.i64s("a.labels").unwrap(), [7, -100]);
        assert!(matches!(references.i64s("a.logits"), Err(GoldenError::Field { .. })));
        assert!(matches!(references.f64s("absent"), Err(GoldenError::Field { .. })));

        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(References::open(&path), Err(GoldenError::Tensors { .. })));
    }
}
