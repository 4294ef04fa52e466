use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use ruminate_algorithms::crystal::{
    CrystalData, Imitation, ImitationConfig, Lengths, QuestionEncoder, read_silver,
};
use ruminate_algorithms::trainer::{MANIFEST, seal, verify};
use ruminate_algorithms::{Error, NullObserver, Sft, Trainer, TrainerConfig};
use ruminate_datasets::{Compat, Split, TaskEntry};
use ruminate_models::{T5, Tokenizer};

use crate::models::tiny;
use crate::{Fuzz, folder, world};

const STEPS: u64 = 2;

/// A run of Crystal's Stage I, whose state is that of the program.
struct Run {
    root: tempfile::TempDir,
    sft: RefCell<Sft<T5, Imitation>>,
}

impl Run {
    fn new() -> Self {
        let below = |path: &str| world("crystal").join(path).display().to_string();
        let data = CrystalData {
            knowledge_path: below("knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json"),
            engine: "clean".into(),
            train_tasks: vec!["weather".into()],
            tasks: [("weather".to_string(), TaskEntry::new("uqa/weather".to_string()))].into(),
            ..CrystalData::default()
        };
        let silver = |split| read_silver(&data, split).unwrap().items;
        let (t5, tokenizer) = (tiny(), Tokenizer::open(&world("t5")).unwrap());
        let lengths = Lengths { max_question_len: 32, max_knowledge_len: 16, max_answer_len: 2 };
        let encoder =
            QuestionEncoder::new(tokenizer.clone(), &t5.config().clone().into(), lengths, Compat::Reference)
                .unwrap();
        let config = ImitationConfig { batch_size: 2, ..ImitationConfig::default() };
        let dev = silver(Split::Dev).into_iter().take(2).collect();
        let imitation = Imitation::new(config, encoder, silver(Split::Train), dev, data.train_tasks).unwrap();
        let run = Self { root: folder(), sft: Sft::new(t5, imitation, tokenizer).into() };
        run.fit(run.root.path()).unwrap();
        run
    }

    /// To the end, which is where the checkpoint stands unless it says something else.
    fn fit(&self, root: &Path) -> Result<(), Error> {
        let config = TrainerConfig { steps: STEPS, eval_every: 0, ..TrainerConfig::default() };
        let fitted = Trainer::new(config, root)?.fit(&mut *self.sft.borrow_mut(), &mut NullObserver)?;
        assert_eq!(fitted.steps, STEPS);
        Ok(())
    }

    /// Damages a file of the checkpoint. `sealed` makes the manifest agree: as if it had been written so.
    fn damage(&self, file: &str, inputs: u64, sealed: bool) {
        let step = self.root.path().join(format!("step-{STEPS}"));
        let right = fs::read(step.join(file)).unwrap();
        let places = [
            MANIFEST,
            "state.json",
            "trainer.safetensors",
            "model.safetensors",
            "config.json",
            "tokenizer.json",
        ];
        // An algorithm refuses a state of other data; it was read from the checkpoint.
        let places = [&places[..], &["checkpoint"]].concat();
        let target = Fuzz { places: &places, ..Fuzz::new(file, vec![right.clone()], inputs) };
        target.run(folder(), |path| {
            let root = path.with_file_name("checkpoints");
            copy(self.root.path(), &root);
            let file = root.join(format!("step-{STEPS}")).join(file);
            let damaged = fs::read(path)?;
            fs::write(&file, &damaged)?;
            if sealed {
                seal(file.parent().unwrap())?;
            } else {
                let intact = damaged == right;
                let verified = verify(file.parent().unwrap());
                assert!(intact || file.ends_with(MANIFEST) || matches!(verified, Err(Error::Damaged { .. })));
            }
            Ok(self.fit(&root)?)
        });
    }
}

/// A fresh copy of a folder of checkpoints.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = to.join(path.file_name().unwrap());
        if path.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path).unwrap(), name).unwrap();
        } else if path.is_dir() {
            copy(&path, &name);
        } else {
            fs::copy(&path, name).unwrap();
        }
    }
}

/// One test: all runs share libtorch's random generator.
#[test]
fn checkpoints() {
    let run = Run::new();
    run.damage(MANIFEST, 300, false);
    for file in ["state.json", "trainer.safetensors"] {
        run.damage(file, 50, false);
        run.damage(file, 200, true);
    }
}
