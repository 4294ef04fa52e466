//! Property tests: what must hold for every input.

use proptest::prelude::*;
use ruminate_datasets::order::{evaluation_batches, merge};
use ruminate_datasets::question::{letters, parse_choices, parse_fields, parse_line};
use ruminate_datasets::{Compat, Cursor, Order, Prompts, Shard, TrainBatches};

const EOS: i64 = 1;

fn ids() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(2i64..100, 0..20)
}

fn with_eos(mut ids: Vec<i64>) -> Vec<i64> {
    ids.push(EOS);
    ids
}

proptest! {
    #[test]
    fn the_parser_takes_any_text(text in any::<String>(), marked in r"[ab()ABC\\n\té \u{a0}]{0,60}") {
        for text in [text, marked] {
            let _ = parse_choices(&text);
            let _ = parse_fields(&text, &text);
            if let Ok(line) = parse_line(&text) {
                prop_assert!(line.answer_ix < line.choice_texts.len());
            }
        }
    }

    #[test]
    fn choices_round_trip(texts in prop::collection::vec(r"[a-zé0-9]([a-zé0-9 ]{0,8}[a-zé0-9])?", 1..12)) {
        for lower in [false, true] {
            let markers = letters(texts.len()).into_iter().map(|l| if lower { l.to_lowercase() } else { l });
            let joined: Vec<String> = markers.zip(&texts).map(|(l, text)| format!("({l}) {text}")).collect();
            prop_assert_eq!(&parse_choices(&joined.join(" ")), &texts);
            let line = format!("stem \\n {} \\n context \t {} \r\n", joined.join(" "), texts[texts.len() - 1]);
            let parsed = parse_line(&line).unwrap();
            prop_assert_eq!(&texts[parsed.answer_ix], &texts[texts.len() - 1]);
            prop_assert_eq!(&parsed.choice_texts, &texts);
        }
    }

    #[test]
    fn prompts_have_the_expected_lengths(q in ids(), k in ids(), kn in ids(), an in ids()) {
        let (q, k) = (with_eos(q), with_eos(k));
        for compat in [Compat::Reference, Compat::Corrected] {
            let p = Prompts::new(with_eos(kn.clone()), with_eos(an.clone()), EOS, compat).unwrap();
            let statement = if k.len() == 1 { 0 } else { kn.len() + k.len() - 1 };
            prop_assert_eq!(p.qk(&q).len(), q.len() + kn.len());
            prop_assert_eq!(p.qa(&q).len(), q.len() + an.len());
            prop_assert_eq!(p.qka(&q, &k).len(), q.len() + statement + an.len());
            let prompt = p.qka(&q, &k);
            prop_assert_eq!(prompt.iter().filter(|&&id| id == EOS).count(), 1);
            prop_assert_eq!(prompt.last(), Some(&EOS));
        }
    }

    #[test]
    fn resuming_is_not_stopping(
        len in 1usize..40, batch in 1usize..5, world in 1usize..4, seed: u64, stop in 0usize..30, fresh: bool,
    ) {
        prop_assume!(batch * world <= len);
        let order = if fresh { Order::reshuffled(len, seed) } else { Order::shuffled(len, seed) };
        let start = || TrainBatches::new(order.clone(), batch, Shard::new(world - 1, world).unwrap()).unwrap();
        let mut whole = start();
        let mut first = start();
        let _ = whole.by_ref().take(stop).count();
        let _ = first.by_ref().take(stop).count();
        let saved = serde_json::to_string(&first.cursor()).unwrap();
        let mut second = start();
        second.resume(serde_json::from_str::<Cursor>(&saved).unwrap()).unwrap();
        let rest: Vec<_> = second.take(20).collect();
        prop_assert_eq!(rest, whole.take(20).collect::<Vec<_>>());
    }

    #[test]
    fn ranks_share_an_epoch_without_overlap(len in 1usize..60, batch in 1usize..5, world in 1usize..5, seed: u64) {
        prop_assume!(batch * world <= len);
        let order = Order::reshuffled(len, seed);
        let shard = |rank| Shard::new(rank, world).unwrap();
        let steps = len / (batch * world);
        let ranks: Vec<Vec<Vec<usize>>> = (0..world)
            .map(|rank| TrainBatches::new(order.clone(), batch, shard(rank)).unwrap().take(steps).collect())
            .collect();
        // Together they are the beginning of the common order.
        let seen = merge(ranks, len);
        prop_assert_eq!(&seen[..], &order.indices(0)[..steps * batch * world]);

        let ranks: Vec<_> = (0..world).map(|rank| evaluation_batches(len, batch, shard(rank)).unwrap()).collect();
        prop_assert!(ranks.iter().flatten().all(|b| b.len() == batch));
        prop_assert!(ranks.iter().all(|r| r.len() == ranks[0].len()));
        prop_assert_eq!(merge(ranks, len), (0..len).collect::<Vec<_>>());
    }

    #[test]
    fn orders_are_permutations(len in 0usize..200, seed: u64, epoch: u64) {
        let mut indices = Order::reshuffled(len, seed).indices(epoch);
        indices.sort_unstable();
        prop_assert_eq!(indices, (0..len).collect::<Vec<_>>());
    }
}
