//! The models behind the rewards, and the rewards that they make.

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ruminate_datasets::mario::MarioDataset;
use ruminate_models::{Model, Tokenizer, Vera};
use ruminate_rewards::mario::{
    Accuracy, Believer, Consistency, ConsistencyMode, Diversity, Factuality, LengthAndDiversity, LengthMore,
    NumWords, OptionModel, Plausibility, RewardName, RewardSet,
};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tch::{Device, Kind};

use crate::trainer::verify;
use crate::{Error, Precision, Result};

/// The models behind the rewards, and where they run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardModels {
    /// Vera, for plausibility.
    pub vera: Option<RewardModel>,
    /// The model that answers without a rationale, for consistency.
    pub i2o: Option<RewardModel>,
    /// The model that answers with a rationale, for consistency.
    pub ir2o: Option<RewardModel>,
    /// Flan-T5, for factuality.
    pub flan_t5: Option<RewardModel>,
    /// How the two become a reward where no name says it.
    pub consistency: ConsistencyMode,
}

/// A frozen model behind a reward. In configurations it is the folder alone, or a table with `folder`, `device` and `precision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewardModel {
    /// A checkpoint, or a Hugging Face folder.
    pub folder: PathBuf,
    /// Where it runs; by default, where the policy does.
    pub device: Option<Device>,
    /// The precision of its weights and products.
    pub precision: Precision,
}

impl RewardModel {
    /// The model of a folder, in float32 beside the policy.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), device: None, precision: Precision::F32 }
    }

    /// The kind and the device of its parameters.
    fn place(&self, key: &str, policy: Device) -> Result<(Kind, Device)> {
        let kind = match self.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let device = self.device.unwrap_or(policy);
        if let Device::Cuda(index) = device
            && (!tch::Cuda::is_available() || index as i64 >= tch::Cuda::device_count())
        {
            let reason = format!("there is no device cuda:{index} on this machine; name another, or none");
            return Err(Error::config(&format!("rewards.{key}"), reason));
        }
        Ok((kind, device))
    }
}

/// The form with all fields.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    folder: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(default)]
    precision: Precision,
}

impl Serialize for RewardModel {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Self { folder, device, precision } = self.clone();
        if device.is_none() && precision == Precision::F32 {
            return folder.serialize(serializer);
        }
        let device = device.map(|device| match device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        });
        Table { folder, device, precision }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RewardModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RewardModel;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a folder, or a table with folder, device and precision")
            }

            fn visit_str<E: serde::de::Error>(self, folder: &str) -> std::result::Result<RewardModel, E> {
                Ok(RewardModel::new(folder.as_ref()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<RewardModel, A::Error> {
                let Table { folder, device, precision } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                let device = device.as_deref().map(device_named).transpose().map_err(A::Error::custom)?;
                Ok(RewardModel { folder, device, precision })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn device_named(name: &str) -> std::result::Result<Device, String> {
    let index = |text: &str| text.parse().ok().map(Device::Cuda);
    match name {
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda(0)),
        _ => name.strip_prefix("cuda:").and_then(index),
    }
    .ok_or_else(|| format!("`{name}` is not a device; expected cpu, cuda or cuda:N"))
}

impl RewardModels {
    /// Checks what can be checked before any file is read.
    ///
    /// # Errors
    /// One of the two models of consistency is missing.
    pub fn validate(&self) -> Result<()> {
        if self.i2o.is_some() == self.ir2o.is_some() {
            return Ok(());
        }
        let missing = if self.i2o.is_none() { "rewards.i2o" } else { "rewards.ir2o" };
        let reason = "consistency compares two models: name both rewards.i2o and rewards.ir2o, or neither";
        Err(Error::config(missing, reason))
    }

    /// Diversity, and the rewards whose models are named, in the paper's order.
    #[must_use]
    pub fn available(&self) -> Vec<RewardName> {
        let consistency = self.i2o.as_ref().map(|_| RewardName::Consistency(self.consistency));
        let plausibility = self.vera.as_ref().map(|_| RewardName::Plausibility);
        consistency.into_iter().chain(plausibility).chain([RewardName::Diversity]).collect()
    }

    /// The rewards to judge by: those that are named, where `trained` stands for the ones that a policy learns from, or else those that are
    /// [`available`](Self::available). Accuracy, which every result has, is left out.
    ///
    /// # Errors
    /// A name stands for no reward, or the model of a reward is not named.
    pub fn chosen(
        &self,
        names: &[String],
        trained: &[RewardName],
        dataset: MarioDataset,
    ) -> Result<Vec<RewardName>> {
        let mut rewards = vec![];
        for name in names {
            match name.as_str() {
                "trained" => rewards.extend(trained),
                name => rewards.extend(rewards_named("evaluation.rewards", [name], dataset)?),
            }
        }
        if names.is_empty() {
            rewards = self.available();
        }
        rewards.retain(|reward| *reward != RewardName::Accuracy);
        // What is missing shows before anything is loaded.
        self.behind(&rewards)?;
        Ok(rewards)
    }

    /// The models of some rewards, as often as [`load`](Self::load) loads them, under their keys in a configuration.
    ///
    /// # Errors
    /// A reward's model is not named.
    pub fn behind(&self, rewards: &[RewardName]) -> Result<Vec<(&'static str, &RewardModel)>> {
        let mut models = vec![];
        for reward in rewards {
            match reward {
                RewardName::Plausibility | RewardName::PlausibilityWithQuestion => {
                    models.push(("vera", self.verifier()?));
                }
                RewardName::Consistency(_) => {
                    let [i2o, ir2o] = self.judges()?;
                    models.extend([("i2o", i2o), ("ir2o", ir2o)]);
                }
                RewardName::Factuality(_) => models.push(("flan_t5", self.believer()?)),
                _ => {}
            }
        }
        // All forms of factuality ask the same model.
        let mut believers = 0;
        models.retain(|(key, _)| *key != "flan_t5" || std::mem::replace(&mut believers, 1) == 0);
        Ok(models)
    }

    /// Loads the models of some rewards; those that name no device of their own go to `device`.
    ///
    /// # Errors
    /// A model is not named, cannot be loaded, or belongs on a device that is not there.
    pub fn load(&self, rewards: &[RewardName], dataset: MarioDataset, device: Device) -> Result<RewardSet> {
        let vera = || -> Result<Vera> {
            let model = self.verifier()?;
            let (kind, device) = model.place("vera", device)?;
            Ok(Vera::load(&model.folder, kind, device)?)
        };
        let options = |key: &str, model: &RewardModel| -> Result<OptionModel<Model>> {
            let (kind, device) = model.place(key, device)?;
            verify(&model.folder)?;
            let loaded = Model::load(&model.folder, kind, device)?;
            Ok(OptionModel::new(loaded, Tokenizer::open(&model.folder)?, dataset)?)
        };
        let mut believer: Option<Rc<Believer<Model>>> = None;
        let mut set = RewardSet::new();
        for &reward in rewards {
            set = match reward {
                RewardName::Accuracy => set.add(Accuracy),
                RewardName::Diversity => set.add(Diversity::Rationale),
                RewardName::WholeDiversity => set.add(Diversity::WholeResponse),
                RewardName::Plausibility => set.add(Plausibility::new(vera()?)),
                RewardName::PlausibilityWithQuestion => set.add(Plausibility::with_question(vera()?)),
                RewardName::Consistency(mode) => {
                    let [i2o, ir2o] = self.judges()?;
                    set.add(Consistency::new(dataset, options("i2o", i2o)?, options("ir2o", ir2o)?, mode))
                }
                RewardName::NumWords => set.add(NumWords),
                RewardName::LengthMore => set.add(LengthMore),
                RewardName::LengthBetween(between) => set.add(between),
                RewardName::LengthAndDiversity => set.add(LengthAndDiversity),
                RewardName::Factuality(form) => {
                    let shared = match believer.take() {
                        Some(shared) => shared,
                        None => {
                            let model = self.believer()?;
                            let (kind, device) = model.place("flan_t5", device)?;
                            let loaded = Model::load(&model.folder, kind, device)?;
                            Rc::new(Believer::new(loaded, Tokenizer::open(&model.folder)?)?)
                        }
                    };
                    believer = Some(Rc::clone(&shared));
                    set.add(Factuality::new(shared, form))
                }
            };
        }
        Ok(set)
    }

    /// The two models that consistency asks.
    fn judges(&self) -> Result<[&RewardModel; 2]> {
        let (Some(i2o), Some(ir2o)) = (&self.i2o, &self.ir2o) else {
            let reason = "consistency needs two models: name checkpoints of `mario reward-model` with rewards.i2o and rewards.ir2o";
            return Err(Error::config("rewards.i2o", reason));
        };
        Ok([i2o, ir2o])
    }

    /// The model that factuality asks.
    fn believer(&self) -> Result<&RewardModel> {
        let reason = "factuality asks Flan-T5: name its folder with rewards.flan_t5";
        self.flan_t5.as_ref().ok_or_else(|| Error::config("rewards.flan_t5", reason))
    }

    /// The model that plausibility asks.
    fn verifier(&self) -> Result<&RewardModel> {
        let reason = "plausibility needs a verifier: name the folder of Vera, or a checkpoint of `mario reward-model --mode \
                      vera`, with rewards.vera";
        self.vera.as_ref().ok_or_else(|| Error::config("rewards.vera", reason))
    }
}

/// Rewards by the names in a list; `{dataset}` stands for the data set.
///
/// # Errors
/// A name stands for no reward; `key` is the setting that holds the list.
pub fn rewards_named<'a>(
    key: &str,
    names: impl IntoIterator<Item = &'a str>,
    dataset: MarioDataset,
) -> Result<Vec<RewardName>> {
    let parse = |name: &str| RewardName::parse(&name.replace("{dataset}", dataset.name()), dataset);
    names.into_iter().map(|name| parse(name).map_err(|error| Error::config(key, error.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn models(value: serde_json::Value) -> std::result::Result<RewardModels, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_model_is_a_folder_or_a_table() {
        let written = json!({
            "vera": { "folder": "vera", "device": "cuda:1", "precision": "bf16" }, "i2o": "runs/i2o", "ir2o": null, "flan_t5": null,
            "consistency": "continuous",
        });
        let read = models(written.clone()).unwrap();
        let vera = read.vera.as_ref().unwrap();
        assert_eq!((vera.device, vera.precision), (Some(Device::Cuda(1)), Precision::Bf16));
        assert_eq!(read.i2o, Some(RewardModel::new("runs/i2o".as_ref())));
        assert_eq!(serde_json::to_value(&read).unwrap(), written);
        assert!(read.validate().unwrap_err().to_string().contains("rewards.ir2o"));
        for (wrong, reason) in [
            (json!({ "vera": { "folder": "x", "device": "tpu" } }), "not a device"),
            (json!({ "vera": { "device": "cpu" } }), "folder"),
            (json!({ "vera": { "folder": "x", "kind": "f16" } }), "kind"),
            (json!({ "vera": 3 }), "a folder, or a table"),
        ] {
            let error = models(wrong).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn rewards_are_chosen_by_name_and_need_their_models() {
        let set = MarioDataset::QuaRel;
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let none = RewardModels::default();
        assert_eq!(none.chosen(&[], &[], set).unwrap(), [RewardName::Diversity]);
        let trained = [RewardName::Accuracy, RewardName::NumWords];
        let chosen = none.chosen(&named(&["trained", "diversity-3-4"]), &trained, set).unwrap();
        assert_eq!(chosen, [RewardName::NumWords, RewardName::WholeDiversity]);
        for (name, reason) in [
            ("plausibility", "rewards.vera"),
            ("{dataset}-rationale-quality-discrete", "rewards.i2o"),
            ("flan-t5-factuality", "rewards.flan_t5"),
            ("rev", "not supported"),
        ] {
            let error = none.chosen(&named(&[name]), &[], set).unwrap_err();
            assert!(error.is_configuration() && error.to_string().contains(reason), "{error}");
        }
        let flan = RewardModels { flan_t5: Some(RewardModel::new("flan".as_ref())), ..none };
        let both = flan.chosen(&named(&["flan-t5-factuality", "flan-t5-factuality-full"]), &[], set).unwrap();
        assert_eq!(flan.behind(&both).unwrap().len(), 1);
        assert!(flan.load(&both, set, Device::Cpu).is_err());
        let elsewhere = RewardModel { device: Some(Device::Cuda(99)), ..RewardModel::new("flan".as_ref()) };
        let flan = RewardModels { flan_t5: Some(elsewhere), ..RewardModels::default() };
        let error = flan.load(&both, set, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("no device cuda:99"), "{error}");
    }
}
