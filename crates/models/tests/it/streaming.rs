//! Tokens that are told while they are written.

use ruminate_models::{Generate, GenerationConfig, Sampling, Strategy};

use crate::support::{model, plain};

#[test]
fn a_listener_hears_the_tokens_of_the_result() {
    let model = model(plain());
    let sampled = Strategy::Sample(Sampling { temperature: 2.0, ..Sampling::default() });
    for (strategy, max_new_tokens) in [(Strategy::Greedy, 5), (sampled, 40)] {
        let config = GenerationConfig { strategy, max_new_tokens, ..GenerationConfig::default() };
        for seed in 1..4 {
            let prompt = vec![5, 6, 1];
            let whole = &model.generate(std::slice::from_ref(&prompt), &config, &[seed]).unwrap()[0][0];
            let (sender, tokens) = std::sync::mpsc::channel();
            let written = model.generate_streaming(&prompt, &config, seed, sender).unwrap();
            assert_eq!(&written, whole);
            // The sender is gone with the call, so this ends.
            assert_eq!(tokens.iter().collect::<Vec<_>>(), whole.ids);
            // Nobody listens any more, and nobody has to.
            drop(tokens);
            let (sender, _) = std::sync::mpsc::channel();
            assert_eq!(&model.generate_streaming(&prompt, &config, seed, sender).unwrap(), whole);
        }
    }
    let two = GenerationConfig { strategy: sampled, samples_per_prompt: 2, ..GenerationConfig::default() };
    let (sender, _) = std::sync::mpsc::channel();
    assert!(
        model.generate_streaming(&[5, 1], &two, 1, sender).unwrap_err().to_string().contains("streaming")
    );
}
