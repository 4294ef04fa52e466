//! The transformer block, and the stack of them.

use tch::Tensor;

use super::kv_cache::{KvCache, Position, attend_from_position};
use super::mlp::PackedMlp;
use super::{Attention, AttentionBias, AttentionBlock, KeyValues, Mlp, PackedLinear, RmsNorm, Rope, dropout};
use crate::Result;

/// Dropout rates of a pass; 0 outside of training.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dropout {
    /// On attention probabilities.
    pub(crate) attention: f64,
    /// On what each layer adds to the residual stream, inside the feed-forward layer, and on the stack's input and output.
    pub(crate) hidden: f64,
}

/// Settings and masks that all blocks of one forward pass share. Tokens of all rows lie one behind the other, `[tokens, width]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pass {
    /// How self-attention divides the tokens, in blocks that see all positions before a token.
    pub(crate) self_attention: Vec<AttentionBlock>,
    /// How self-attention divides the tokens, in blocks with a sliding window.
    pub(crate) sliding_attention: Vec<AttentionBlock>,
    /// How attention to the encoder divides the tokens.
    pub(crate) cross_attention: Vec<AttentionBlock>,
    pub(crate) rope: Option<Rope>,
    pub(crate) dropout: Dropout,
}

/// Attention to the encoder, with its norm.
#[derive(Debug, Clone)]
pub(crate) struct CrossAttention {
    pub(crate) norm: RmsNorm,
    pub(crate) attention: Attention,
}

/// A block whose layers read the normalised residual stream and add to it ("pre-norm").
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) self_attention_norm: RmsNorm,
    pub(crate) self_attention: Attention,
    /// Whether self-attention sees a window only.
    pub(crate) sliding: bool,
    /// In decoders with an encoder.
    pub(crate) cross_attention: Option<CrossAttention>,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: Mlp,
}

impl Block {
    /// `x` `[tokens, width]` after the block: `x + self_attention(norm(x))`, in a decoder with an encoder
    /// `x + cross_attention(norm(x), encoder)`, then `x + mlp(norm(x))`, with dropout before each sum. The projection that takes
    /// `norm.fused(x)` runs the norm.
    ///
    /// Masks, T5's position bias and Llama's rotary positions come with `pass`. `encoder` are the encoder's states
    /// `[encoder tokens, width]`. `prefix` and `kept` are what transformers calls `past_key_values`: keys and values of a prompt that all
    /// rows attend to first, and those of the tokens themselves.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        encoder: Option<&Tensor>,
        prefix: Option<&KeyValues>,
        kept: Option<&mut Vec<KeyValues>>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let rate = pass.dropout.hidden;
        let groups = if self.sliding { &pass.sliding_attention } else { &pass.self_attention };
        let h =
            self.self_attention.to_itself(self.self_attention_norm.fused(x), groups, prefix, kept, pass)?;
        let mut x = x.f_add(&dropout(&h, rate)?)?;
        if let (Some(CrossAttention { norm, attention }), Some(encoder)) = (&self.cross_attention, encoder) {
            let h = attention.to_encoder(norm.fused(&x), encoder, pass)?;
            x = x.f_add(&dropout(&h, rate)?)?;
        }
        let h = self.mlp.forward(self.mlp_norm.fused(&x), rate)?;
        Ok(x.f_add(&dropout(&h, rate)?)?)
    }

    /// [`forward`](Self::forward) that keeps only its inputs for the backward pass, which runs the block again.
    fn forward_checkpointed(&self, x: &Tensor, encoder: Option<&Tensor>, pass: &Pass) -> Result<Tensor> {
        let (block, mut pass) = (self.clone(), pass.clone());
        // Whatever has gradients must be an input: a position bias is learnt.
        let learnt = |group: &AttentionBlock| group.bias.scores().filter(|s| s.requires_grad()).is_some();
        let biases = pass.self_attention.iter().filter(|b| learnt(b)).filter_map(|b| b.bias.scores());
        let inputs: Vec<Tensor> =
            [x].into_iter().chain(biases).chain(encoder).map(Tensor::shallow_clone).collect();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        ruminate_torch::checkpoint(&inputs, move |inputs| -> Result<Tensor> {
            let mut rest = inputs[1..].iter();
            for block in pass.self_attention.iter_mut().filter(|b| learnt(b)) {
                if let Some(input) = rest.next() {
                    block.bias = AttentionBias::Scores(input.shallow_clone().into());
                }
            }
            block.forward(&inputs[0], rest.next(), None, None, &pass)
        })
    }
}

/// Blocks one after the other, and the final norm.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: RmsNorm,
    /// Whether blocks keep only their inputs for the backward pass and run again there.
    pub(crate) gradient_checkpointing: bool,
}

impl Stack {
    /// Embedded tokens `[tokens, width]` to states after the final norm. `trace` receives the output of every block.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        encoder: Option<&Tensor>,
        pass: &Pass,
        mut trace: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let mut x = dropout(x, pass.dropout.hidden)?;
        for block in &self.blocks {
            // CPU results are bit-identical with and without checkpointing: each block reads the encoder's states through its own view,
            // which fixes the order of gradient sums.
            let view = encoder.map(Tensor::f_alias).transpose()?;
            x = match self.gradient_checkpointing {
                true => block.forward_checkpointed(&x, view.as_ref(), pass)?,
                false => block.forward(&x, view.as_ref(), None, None, pass)?,
            };
            if let Some(trace) = trace.as_deref_mut() {
                trace.push(x.shallow_clone());
            }
        }
        dropout(&self.final_norm.forward(&x)?, pass.dropout.hidden)
    }

    /// [`forward`](Self::forward) behind the keys and values of a prefix, of which consecutive rows share one. Also returns the keys and
    /// values of every block.
    pub(crate) fn forward_with_prefix(
        &self,
        x: &Tensor,
        prefix: Option<&[KeyValues]>,
        pass: &Pass,
    ) -> Result<(Tensor, Vec<KeyValues>)> {
        let (mut x, mut kept) = (x.shallow_clone(), vec![]);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, None, prefix.map(|prefix| &prefix[i]), Some(&mut kept), pass)?;
        }
        Ok((self.final_norm.forward(&x)?, kept))
    }
}

/// Position, rotation and masks that all blocks of one decoding step share.
pub(crate) struct Step<'a> {
    pub(crate) position: Position<'a>,
    pub(crate) rope: Option<&'a Rope>,
    /// The view of blocks without a window.
    pub(crate) full: View,
    /// The view of blocks with a sliding window.
    pub(crate) sliding: View,
    /// Added to the scores of the encoder's states, `[prompts, 1, 1, source]`.
    pub(crate) encoder_bias: Option<&'a Tensor>,
}

/// Which positions a token sees, and what is added to their scores, broadcastable to `[rows, heads, 1, positions]`.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) positions: std::ops::Range<i64>,
    pub(crate) bias: Option<Tensor>,
}

/// A block in decoding: its cache, and its weights in the layout that is fastest for few rows.
#[derive(Debug)]
pub(crate) struct DecodingBlock {
    cache: KvCache,
    /// Keys and values of the encoder's states.
    encoder: Option<KeyValues>,
    /// Packed by the first step: a call for a single token needs none.
    weights: Option<PackedBlock>,
}

#[derive(Debug)]
struct PackedBlock {
    qkv: PackedLinear,
    o: PackedLinear,
    /// `q` and `o` of the attention to the encoder.
    cross: Option<[PackedLinear; 2]>,
    mlp: PackedMlp,
}

impl PackedBlock {
    fn new(block: &Block) -> Result<Self> {
        let Attention { q, k, v, o, .. } = &block.self_attention;
        let cross = block.cross_attention.as_ref().map(|cross| -> Result<_> {
            let Attention { q, o, .. } = &cross.attention;
            Ok([PackedLinear::new(&[q])?, PackedLinear::new(&[o])?])
        });
        Ok(Self {
            qkv: PackedLinear::new(&[q, k, v])?,
            o: PackedLinear::new(&[o])?,
            cross: cross.transpose()?,
            mlp: block.mlp.packed()?,
        })
    }
}

impl DecodingBlock {
    pub(crate) fn new(cache: KvCache, encoder: Option<KeyValues>) -> Self {
        Self { cache, encoder, weights: None }
    }

    /// [`Block::forward`] for one new position of every row, `[rows, 1, width]`, without dropout.
    pub(crate) fn step(&mut self, block: &Block, x: &Tensor, step: &Step<'_>) -> Result<Tensor> {
        if self.weights.is_none() {
            self.weights = Some(PackedBlock::new(block)?);
        }
        let (Some(weights), rows) = (&self.weights, x.size()[0]) else { return Ok(x.shallow_clone()) };
        let attention = &block.self_attention;
        let view = if block.sliding { &step.sliding } else { &step.full };
        let qkv = attention.qkv_of_position(&weights.qkv, block.self_attention_norm.fused(x))?;
        let (visible, bias, scale) = (&view.positions, view.bias.as_ref(), attention.shape.scale);
        let h = self.cache.attend(qkv, step.rope, step.position, visible, bias, scale)?;
        let mut x = weights.o.forward_add(&h, x)?;
        if let (Some(CrossAttention { norm, attention }), Some([q, o]), Some(encoder)) =
            (&block.cross_attention, &weights.cross, &self.encoder)
        {
            let queries = q.forward(norm.fused(&x))?.f_view_([rows, 1, attention.shape.heads, -1])?;
            let h = attend_from_position(&queries, &[encoder], step.encoder_bias, attention.shape.scale)?;
            x = o.forward_add(&h, &x)?;
        }
        weights.mlp.forward_add(block.mlp_norm.fused(&x), &x)
    }

    pub(crate) fn zero_unwritten(&self, position: i64) -> Result<()> {
        self.cache.zero_unwritten(position)
    }

    pub(crate) fn select_rows(&mut self, rows: &Tensor) -> Result<()> {
        self.cache.select_rows(rows)
    }

    pub(crate) fn select_prompts(&mut self, prompts: &Tensor) -> Result<()> {
        self.cache.select_prompts(prompts)?;
        self.encoder.as_mut().map_or(Ok(()), |encoder| encoder.select(prompts))
    }
}
