use ruminate_algorithms::trainer::Algorithm;
use ruminate_algorithms::{Collective, Fitted, Observer, Result, Trainer, TrainerConfig};

use crate::rundir::RunDir;

/// Something that a trainer fits, whatever its batches are: every [`Algorithm`], or one with work of its own before the first step.
pub trait Fit {
    /// Trains to the end, or goes on where the folder's last checkpoint stands.
    ///
    /// # Errors
    /// Those of [`Trainer::across`] and [`Trainer::fit`].
    fn fit(
        self: Box<Self>,
        trainer: &TrainerConfig,
        dir: &RunDir,
        collective: &Collective,
        observer: &mut dyn Observer,
    ) -> Result<Fitted>;
}

impl<A: Algorithm> Fit for A {
    fn fit(
        self: Box<Self>,
        trainer: &TrainerConfig,
        dir: &RunDir,
        collective: &Collective,
        observer: &mut dyn Observer,
    ) -> Result<Fitted> {
        let mut algorithm = *self;
        Trainer::across(trainer.clone(), &dir.checkpoints(), collective)?.fit(&mut algorithm, observer)
    }
}

/// A closure that fits.
pub(super) struct FitBy<F>(pub(super) F);

impl<F> Fit for FitBy<F>
where
    F: FnOnce(&TrainerConfig, &RunDir, &Collective, &mut dyn Observer) -> Result<Fitted>,
{
    fn fit(
        self: Box<Self>,
        trainer: &TrainerConfig,
        dir: &RunDir,
        collective: &Collective,
        observer: &mut dyn Observer,
    ) -> Result<Fitted> {
        (self.0)(trainer, dir, collective, observer)
    }
}
