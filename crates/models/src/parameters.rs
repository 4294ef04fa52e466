//! A model's parameters under their Hugging Face names.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::checkpoint::Weights;
use crate::{Error, Result};

/// Named parameters in a fixed order. The tensors are shared with the model's layers.
#[derive(Debug, Default)]
pub struct Parameters {
    entries: Vec<(String, Tensor)>,
}

impl Parameters {
    /// A model's parameters: the names that its checkpoints use, and tensors that gather gradients.
    #[must_use]
    pub fn new(entries: Vec<(String, Tensor)>) -> Self {
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

    /// Puts another tensor in the place of the parameter of that name.
    pub(crate) fn replace(&mut self, name: &str, tensor: &Tensor) {
        if let Some((_, old)) = self.entries.iter_mut().find(|(n, _)| n == name) {
            *old = tensor.shallow_clone();
        }
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
    /// When the folder cannot be read, or its tensors are not exactly these parameters; no value is changed then.
    pub fn restore(&self, folder: &Path) -> Result<()> {
        let weights = Weights::open(folder, Device::Cpu)?;
        self.fill(&weights.path, weights.tensors)
    }

    /// Copies values from the tensors of a file, which must be exactly these parameters.
    pub(crate) fn fill(&self, path: &Path, mut tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let (mut copies, mut problems) = (vec![], vec![]);
        for (name, target) in self.iter() {
            match tensors.remove(name) {
                Some(source) if source.size() == target.size() => copies.push((target, source)),
                Some(source) => {
                    problems.push(format!("`{name}` has shape {:?}, not {:?}", source.size(), target.size()));
                }
                None => problems.push(format!("`{name}` is missing")),
            }
        }
        problems.extend(tensors.keys().map(|name| format!("`{name}` is unexpected")));
        if !problems.is_empty() {
            return Err(Error::Weights { path: path.to_path_buf(), problems });
        }
        copy(copies)
    }

    /// Copies values from another model of the same architecture, e.g. to undo an update.
    ///
    /// # Errors
    /// When a parameter is missing there or has another shape; no value is changed then.
    pub fn copy_from(&self, other: &Parameters) -> Result<()> {
        let mut copies = vec![];
        for (name, target) in self.iter() {
            let refuse = |reason| Error::invalid("parameters", reason);
            let source = other.get(name).ok_or_else(|| refuse(format!("the other model has no `{name}`")))?;
            let (from, to) = (source.size(), target.size());
            if from != to {
                return Err(refuse(format!("`{name}` has shape {from:?} in the other model, not {to:?}")));
            }
            copies.push((target, source.shallow_clone()));
        }
        copy(copies)
    }
}

impl<'a> IntoIterator for &'a Parameters {
    type Item = (&'a str, &'a Tensor);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

/// Copies values, target first; shapes are known to be equal.
fn copy(pairs: Vec<(&Tensor, Tensor)>) -> Result<()> {
    tch::no_grad(|| {
        for (target, source) in pairs {
            target.shallow_clone().f_copy_(&source)?;
        }
        Ok(())
    })
}

/// Builds a new model whose parameters are drawn from this seed.
pub(crate) fn seeded<M>(seed: i64, build: impl FnOnce() -> Result<M>) -> Result<M> {
    // The draw must not disturb whoever else uses the generator, nor another draw in another thread.
    static DRAWING: Mutex<()> = Mutex::new(());
    let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    let state = ruminate_torch::rng::state(Device::Cpu)?;
    // Parameters are drawn on the CPU, whatever the device; the generators of other devices stay as they are.
    ruminate_torch::rng::seed(Device::Cpu, seed as u64)?;
    let model = build();
    ruminate_torch::rng::set_state(Device::Cpu, &state)?;
    model
}

/// How a parameter of a new model begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Init {
    /// Normal with this standard deviation.
    Normal(f64),
    Ones,
    Zeros,
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
            Init::Zeros => Tensor::f_zeros(shape, options)?,
        })
    }
}

/// Where a model's parameters come from, and the list of those it has asked for so far.
#[derive(Debug)]
pub(crate) struct Builder {
    /// `None` draws new parameters from libtorch's generator.
    weights: Option<Weights>,
    kind: Kind,
    device: Device,
    entries: Vec<(String, Tensor)>,
    problems: Vec<String>,
}

impl Builder {
    pub(crate) fn new(weights: Option<Weights>, kind: Kind, device: Device) -> Self {
        Self { weights, kind, device, entries: vec![], problems: vec![] }
    }

    pub(crate) fn options(&self) -> (Kind, Device) {
        (self.kind, self.device)
    }

    /// The parameter of that name and shape. A tensor that is missing or misshapen is remembered for
    /// [`finish`](Self::finish), so that one error names them all, or many: a configuration with a wrong number of layers
    /// may ask for billions.
    pub(crate) fn parameter(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        const MANY: usize = 100;
        if let Some(weights) = self.weights.take_if(|_| self.problems.len() >= MANY) {
            self.problems.push("and maybe more".into());
            return Err(Error::Weights { path: weights.path, problems: std::mem::take(&mut self.problems) });
        }
        let tensor = match &mut self.weights {
            None => init.draw(shape, (self.kind, self.device))?,
            Some(weights) => match weights.tensors.remove(name) {
                Some(tensor) if tensor.size() == shape => {
                    tensor.f_to_kind(self.kind)?.f_to_device(self.device)?
                }
                Some(tensor) => {
                    self.problems.push(format!(
                        "`{name}` has shape {:?}, the configuration asks for {shape:?}",
                        tensor.size()
                    ));
                    return Ok(tensor);
                }
                None => {
                    self.problems.push(format!("`{name}` {shape:?} is missing"));
                    return Ok(Tensor::f_zeros([0i64], (self.kind, self.device))?);
                }
            },
        };
        let tensor = tensor.f_set_requires_grad(true)?;
        self.entries.push((name.to_string(), tensor.shallow_clone()));
        Ok(tensor)
    }

    /// The parameters, once all that the model needs were there and nothing else was.
    pub(crate) fn finish(mut self) -> Result<Parameters> {
        if let Some(weights) = self.weights {
            self.problems.extend(weights.tensors.iter().map(|(name, tensor)| {
                format!("`{name}` {:?} is unexpected: the configuration has no place for it", tensor.size())
            }));
            if !self.problems.is_empty() {
                return Err(Error::Weights { path: weights.path, problems: self.problems });
            }
        }
        Ok(Parameters::new(self.entries))
    }
}
