//! Every workload runs, at a size that takes no time.

use ruminate_algorithms::Phases;
use ruminate_benches::{MODELS, Precision, Setting, Shape, WORKLOADS, prepare, shape};
use ruminate_models::ModelShape;
use tch::Device;

fn tiny(model: &str, precision: Precision) -> Setting {
    let mut setting = Setting::new(shape(model).unwrap(), precision, Device::Cpu);
    (setting.source, setting.target, setting.new, setting.response) = (5, 3, 3, 4);
    setting.batch = Some(2);
    setting
}

#[test]
fn every_workload_runs_in_every_precision() {
    for model in ["tiny", "llama-tiny"] {
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Amp] {
            let setting = tiny(model, precision);
            for entry in WORKLOADS.iter().filter(|entry| entry.fits(&setting.model)) {
                let name = entry.name;
                let mut workload =
                    prepare(name, &setting).unwrap_or_else(|error| panic!("{name} {model}: {error:#}"));
                for _ in 0..2 {
                    let done = workload.repeat();
                    done.unwrap_or_else(|error| panic!("{name} {model} {precision:?}: {error:#}"));
                }
                assert!(workload.tokens > 0 && workload.parameters > 0, "{name}");
            }
        }
    }
}

#[test]
fn tokens_are_counted_as_defined() {
    let tokens = |model: &str, name| {
        let mut setting = Setting::new(shape(model).unwrap(), Precision::Fp32, Device::Cpu);
        // Nothing of a smaller model is counted.
        setting.model =
            tiny(if model.starts_with("t5") { "tiny" } else { "llama-tiny" }, Precision::Fp32).model;
        prepare(name, &setting).unwrap().tokens
    };
    let all = ["sft", "gen_greedy_8", "gen_top_p_32", "score", "dpo", "ppo", "prefill", "decode_8"];
    assert_eq!(all.map(|name| tokens("t5-small", name)), [1536, 512, 2048, 6144, 1536, 1536, 1024, 1024]);
    assert_eq!(all.map(|name| tokens("llama-60m", name)), [2048, 512, 2048, 8192, 2048, 2048, 1024, 1024]);
    assert_eq!(tokens("llama-60m", "dpo_trainer"), 2048);
}

#[test]
fn there_are_as_many_repeats_as_turns() {
    for name in ["dpo", "dpo_trainer"] {
        let mut workload = prepare(name, &tiny("llama-tiny", Precision::Fp32)).unwrap();
        let mut asked = 0;
        let mut turns = |phases: &mut Phases| {
            asked += 1;
            // Before the first repeat no time has passed; after each there is more.
            let secs = phases.take().into_iter().map(|(_, secs)| secs).sum::<f64>();
            assert_eq!(secs > 0.0, asked > 1, "{name}, turn {asked}");
            Ok(asked < 4)
        };
        workload.run(&mut turns).unwrap();
        assert_eq!(asked, 4, "{name}");
        let failed = workload.run(&mut |_| anyhow::bail!("standard input is closed")).unwrap_err();
        assert!(format!("{failed:#}").contains("standard input is closed"), "{name}: {failed:#}");
    }
}

#[test]
fn the_least_work_is_that_of_the_definitions() {
    let reckoned = |model: &str, name| {
        let setting = Setting::new(shape(model).unwrap(), Precision::Fp32, Device::Cpu);
        prepare(name, &setting).unwrap().least
    };
    // In Gflop; a T5 reads the source of both completions once.
    let gflop = |model: &str, name| (reckoned(model, name)[0].flop / 1e9).round();
    assert_eq!(["sft", "score", "ppo"].map(|name| gflop("t5-small", name)), [262.0, 349.0, 698.0]);
    // Nothing is asked of the last token of a row.
    assert_eq!(["sft", "score", "ppo"].map(|name| gflop("llama-60m", name)), [537.0, 583.0, 1166.0]);
    assert!((250.0..=260.0).contains(&gflop("t5-small", "dpo")));
    // Parameters that a token takes, in float32. The first one of a Llama comes with the prompt.
    for (model, millions, times) in [("t5-small", 38.5, 128.0), ("llama-60m", 41.7, 127.0)] {
        let steps = *reckoned(model, "decode_8").last().unwrap();
        assert!((steps.bytes / 4e6 - millions).abs() < 0.06, "{model}: {steps:?}");
        assert_eq!((steps.flop, steps.times), (steps.bytes * 4.0, times));
    }
}

#[test]
fn models_have_their_sizes() {
    let parameters = |name: &str| match shape(name).unwrap() {
        Shape::T5(config) => config.parameter_count(),
        Shape::Llama(config) => config.parameter_count(),
    };
    assert!(MODELS.into_iter().all(|name| parameters(name) > 0));
    assert_eq!(parameters("t5-small"), 60_506_624);
    assert_eq!(parameters("llama-60m"), 58_073_600);
    assert_eq!(parameters("llama-1b"), 1_235_814_400);
}

#[test]
fn an_unknown_name_is_told_which_exist() {
    let refusal = |name, model| format!("{:#}", prepare(name, &tiny(model, Precision::Fp32)).unwrap_err());
    let error = refusal("sgd", "tiny");
    assert!(error.contains("'sgd'") && error.contains("sft") && error.contains("quark"), "{error}");
    let error = refusal("quark", "llama-tiny");
    assert!(error.contains("Llama") && error.contains("decode_1") && !error.contains("reward"), "{error}");
    assert!(shape("t6").is_err());
}
