//! Settings of the published code that are refused.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Settings of the published code that are not supported: anything but their defaults is refused with the reason.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unsupported {
    /// Weight of the loss on the answer, `--task_loss_coef`.
    pub task_loss_coef: f64,
    /// Demonstrations before the question in training, `--use_demonstrations`.
    pub use_demonstrations: bool,
}

impl Unsupported {
    /// Refuses what is not supported.
    ///
    /// # Errors
    /// Names the setting and the reason.
    pub fn validate(&self) -> Result<()> {
        if self.task_loss_coef != 0.0 {
            let reason = "the loss on the answer is not supported. The published code looks for the answer's place in vain, and its \
                          published command switches the loss off; let accuracy be a reward instead (quark.training.control.rewards)";
            return Err(Error::config("unsupported.task_loss_coef", reason));
        }
        if self.use_demonstrations {
            let reason = "training behind demonstrations is not supported. The module that holds them is not part of the published code, and \
                          its published command switches them off; `mario teach --model` puts demonstrations before questions without \
                          training";
            return Err(Error::config("unsupported.use_demonstrations", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_refused_by_its_name() {
        Unsupported::default().validate().unwrap();
        for (settings, key) in [
            (Unsupported { task_loss_coef: 1.0, ..Unsupported::default() }, "unsupported.task_loss_coef"),
            (
                Unsupported { task_loss_coef: f64::NAN, ..Unsupported::default() },
                "unsupported.task_loss_coef",
            ),
            (
                Unsupported { use_demonstrations: true, ..Unsupported::default() },
                "unsupported.use_demonstrations",
            ),
        ] {
            let error = settings.validate().unwrap_err();
            assert!(error.is_configuration() && error.to_string().contains(key), "{error}");
        }
    }
}
