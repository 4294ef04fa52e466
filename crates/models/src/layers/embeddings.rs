//! The matrices that tie a network to its vocabulary.

use std::ops::Range;

use ruminate_torch::linear;
use tch::{Kind, Tensor};

use super::PackedLinear;
use crate::batch::{check_id_tensor, check_states};
use crate::parameters::{Builder, Init, Parameters};
use crate::resize::resized;
use crate::{Error, Result, TokenId};

/// The embedding, and the output matrix ("language-model head"), which may be the embedding itself.
#[derive(Debug)]
pub(crate) struct Embeddings {
    /// Name and matrix `[vocab, width]`.
    embedding: (String, Tensor),
    /// Name and output matrix `[vocab, width]`, where it is not the embedding.
    lm_head: Option<(String, Tensor)>,
    /// Factor on the states before the output matrix.
    scale: f64,
    /// The token whose row gets no gradient.
    padding_idx: Option<TokenId>,
}

impl Embeddings {
    /// `shape` is `[vocab, width]`; without an `lm_head` the two matrices are tied.
    pub(crate) fn new(
        builder: &mut Builder,
        name: &str,
        shape: [i64; 2],
        std: f64,
        padding_idx: Option<TokenId>,
    ) -> Result<Self> {
        let embedding = builder.parameter(name, &shape, Init::Normal(std))?;
        Ok(Self { embedding: (name.into(), embedding), lm_head: None, scale: 1.0, padding_idx })
    }

    /// Adds an output matrix of its own.
    pub(crate) fn untie(&mut self, builder: &mut Builder, name: &str, std: f64) -> Result<()> {
        let lm_head = builder.parameter(name, &self.embedding.1.size(), Init::Normal(std))?;
        self.lm_head = Some((name.into(), lm_head));
        Ok(())
    }

    /// Multiplies the states by this before the output matrix.
    pub(crate) fn scale_output(&mut self, scale: f64) {
        self.scale = scale;
    }

    /// Rows of the embedding `[..., width]` of ids that are known to be in the vocabulary.
    pub(crate) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let padding_idx = self.padding_idx.unwrap_or(-1);
        Ok(Tensor::f_embedding(&self.embedding.1, ids, padding_idx, false, false)?)
    }

    /// The row `[width]` of one token, without gradients.
    pub(crate) fn row(&self, id: TokenId) -> Result<Tensor> {
        Ok(self.embedding.1.f_detach()?.f_get(id)?)
    }

    /// The output matrix `[vocab, width]`, and the factor on the states before it.
    pub(crate) fn output_projection(&self) -> (&Tensor, f64) {
        let (_, matrix) = self.lm_head.as_ref().unwrap_or(&self.embedding);
        (matrix, self.scale)
    }

    pub(crate) fn packed_output(&self) -> Result<PackedLinear> {
        PackedLinear::of_weight(self.output_projection().0)
    }

    /// The states as the output matrix reads them.
    pub(crate) fn scaled(&self, states: &Tensor) -> Result<Tensor> {
        Ok(if self.scale == 1.0 { states.shallow_clone() } else { states.f_mul_scalar(self.scale)? })
    }

    /// Logits `[..., vocab]` `f32` of states `[..., width]`.
    pub(crate) fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let (weight, _) = self.output_projection();
        check_states(states, weight.size()[1])?;
        Ok(linear(&self.scaled(states)?, weight)?.f_to_kind(Kind::Float)?)
    }

    /// Logits `[batch, n]` `f32` of a few tokens: states `[batch, width]`, ids `[batch, n]`.
    pub(crate) fn logits_of(&self, states: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (weight, _) = self.output_projection();
        let (vocab, width) = weight.size2()?;
        check_states(states, width)?;
        let (batch, n) = check_id_tensor("ids", ids, vocab)?;
        if states.size()[..states.dim() - 1] != [batch] {
            let reason = format!("{:?} for ids of {batch} rows", states.size());
            return Err(Error::invalid("states", reason));
        }
        let rows = weight.f_index_select(0, &ids.f_reshape([-1])?)?.f_view_([batch, n, -1])?;
        let logits = rows.f_matmul(&self.scaled(states)?.f_unsqueeze(2)?)?;
        Ok(logits.f_squeeze_dim(2)?.f_to_kind(Kind::Float)?)
    }

    /// Matrices whose rows end with the tokens `ids`; see [`LanguageModel::add_tokens`](crate::LanguageModel::add_tokens). Nothing is
    /// changed yet.
    pub(crate) fn resized(&self, ids: &Range<TokenId>, seed: u64) -> Result<[Option<Tensor>; 2]> {
        let matrices = [Some(&self.embedding.1), self.lm_head.as_ref().map(|(_, matrix)| matrix)];
        resized(matrices, self.embedding.1.size()[0], ids, seed)
    }

    /// Puts the matrices of [`resized`](Self::resized) in their places.
    pub(crate) fn replace(&mut self, matrices: [Option<Tensor>; 2], parameters: &mut Parameters) {
        let places = [Some(&mut self.embedding), self.lm_head.as_mut()];
        for (place, matrix) in places.into_iter().zip(matrices) {
            if let (Some((name, old)), Some(new)) = (place, matrix) {
                parameters.replace(name, &new);
                *old = new;
            }
        }
    }
}
