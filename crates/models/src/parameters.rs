//! A model's parameters under their Hugging Face names.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::checkpoint::Weights;
use crate::{Error, Result};

/// Named parameters in a fixed order. The tensors are shared with the model's layers.
#[derive(Debug, Default)]
pub struct Parameters {
    entries: Vec<(String, Tensor)>,
}

impl Parameters {
    pub(crate) fn new(entries: Vec<(String, Tensor)>) -> Self {
        Self { entries }
    }

    /// Names and tensors, in the order in which the model declares them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The parameter of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    /// The list an optimizer takes; the tensors are shared, not copied.
    #[must_use]
    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.entries.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect()
    }

    /// Number of scalar parameters; tied ones count once.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.entries.iter().map(|(_, t)| t.numel() as u64).sum()
    }

    /// Copies values from a model folder of the same architecture, without building a second model.
    ///
    /// # Errors
    /// When the folder cannot be read, or its tensors are not exactly these parameters.
    pub fn restore(&self, folder: &Path) -> Result<()> {
        let mut weights = Weights::open(folder, Device::Cpu)?;
        let mut problems = vec![];
        for (name, target) in self.iter() {
            match weights.take(name) {
                Some(source) if source.size() == target.size() => {
                    tch::no_grad(|| target.shallow_clone().f_copy_(&source))?;
                }
                Some(source) => {
                    problems.push(format!("`{name}` has shape {:?}, not {:?}", source.size(), target.size()));
                }
                None => problems.push(format!("`{name}` is missing")),
            }
        }
        problems.extend(weights.names().map(|name| format!("`{name}` is unexpected")));
        if problems.is_empty() { Ok(()) } else { Err(Error::Weights { path: weights.path, problems }) }
    }

    /// Copies values from another model of the same architecture, e.g. to undo an update.
    ///
    /// # Errors
    /// When a parameter is missing there or has another shape.
    pub fn copy_from(&self, other: &Parameters) -> Result<()> {
        tch::no_grad(|| {
            for (name, target) in self.iter() {
                let source = other.get(name).ok_or_else(|| {
                    Error::invalid("parameters", format!("the other model has no `{name}`"))
                })?;
                target.shallow_clone().f_copy_(source)?;
            }
            Ok(())
        })
    }
}

/// How a parameter of a new model is drawn: normal with this standard deviation, or all ones.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Init {
    Normal(f64),
    Ones,
}

impl Init {
    pub(crate) fn draw(self, shape: &[i64], options: (Kind, Device)) -> Result<Tensor> {
        Ok(match self {
            // Drawn on the CPU in float32, so that a seed gives the same model on every device.
            Init::Normal(std) => Tensor::f_randn(shape, tch::kind::FLOAT_CPU)?
                .f_mul_scalar(std)?
                .f_to_kind(options.0)?
                .f_to_device(options.1)?,
            Init::Ones => Tensor::f_ones(shape, options)?,
        })
    }
}
