//! Every workload runs, at a size that takes no time.

use ruminate_benches::{Precision, Setting, WORKLOADS, config, prepare};
use tch::Device;

fn tiny(precision: Precision) -> Setting {
    let mut setting = Setting::new(config("tiny").unwrap(), precision, Device::Cpu);
    (setting.source, setting.target, setting.response, setting.batch) = (5, 3, 4, Some(2));
    setting
}

#[test]
fn every_workload_runs_in_every_precision() {
    for precision in [Precision::Fp32, Precision::Bf16, Precision::Amp] {
        for (name, _) in WORKLOADS {
            let mut workload =
                prepare(name, &tiny(precision)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            for _ in 0..2 {
                workload.repeat().unwrap_or_else(|error| panic!("{name} {precision:?}: {error:#}"));
            }
            assert!(workload.tokens > 0 && workload.parameters > 0, "{name}");
        }
    }
}

#[test]
fn an_unknown_name_is_told_which_exist() {
    let error = prepare("sgd", &tiny(Precision::Fp32)).unwrap_err().to_string();
    assert!(error.contains("'sgd'") && error.contains("sft"), "{error}");
    assert!(config("t6").is_err());
}
