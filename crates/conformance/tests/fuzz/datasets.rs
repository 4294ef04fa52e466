use ruminate_datasets::chat::{ChatTemplate, Message, TrainedOn};
use ruminate_datasets::environments::Benchmark;
use ruminate_datasets::mario::{
    MarioDataset, MarioRow, ResponseFormat, read_few_shot, read_gold, read_masked_tsv, read_responses,
    read_teacher,
};
use ruminate_datasets::rise::{ConvertConfig, Log, convert};
use ruminate_datasets::rows::{Columns, read_prompts, read_supervised, read_weighted};
use ruminate_datasets::teacher::{Request, match_answers, read_answers};
use ruminate_datasets::tinythinker::{Source, read_items};
use ruminate_datasets::unifiedqa::BadRows;
use ruminate_datasets::{InferenceItem, Origin, ReadOptions, Split, json, knowledge, preference, unifiedqa};

use crate::{Fuzz, folder, world};

fn seeds(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| std::fs::read(world(&format!("crystal/{path}"))).unwrap()).collect()
}

fn origin() -> Origin {
    Origin::new("lives", 0, Split::Train)
}

const SKIP: ReadOptions = ReadOptions { bad_rows: BadRows::Skip, part: unifiedqa::Part::FirstHalf };

#[test]
fn questions() {
    let seeds = seeds(&["uqa/lives/dev.tsv", "uqa/twohop/dev.tsv"]);
    Fuzz::new("train.tsv", seeds, 1000).run(folder(), |path| {
        let skipped = unifiedqa::read(path, &origin(), SKIP);
        for question in unifiedqa::read(path, &origin(), ReadOptions::default())?.items {
            assert!(question.answer_ix < question.choices.len());
        }
        skipped.map(drop).map_err(Into::into)
    });
}

#[test]
fn silver_knowledge() {
    let seeds = seeds(&["knowledge/knowledge_gkp_gpt3clean.dev.weather.json"]);
    Fuzz::new("silver.json", seeds, 1000).run(folder(), |path| {
        let skipped = knowledge::read(path, &origin(), SKIP);
        for item in knowledge::read(path, &origin(), ReadOptions::default())?.items {
            assert!(item.question.answer_ix < item.question.choices.len());
            assert_eq!(item.statements(3).count(), 3);
        }
        skipped.map(drop).map_err(Into::into)
    });
}

#[test]
fn evaluation_files() {
    let item = |task: &str, query: &str| {
        format!(
            r#"{{"task": "{task}", "split": "dev", "query": "{query}", "cands": ["A", "B"], "answer_ix": 1,
            "answer": "B", "knowledges": ["one", "two"], "scores_": [[0.5, 1.0], [1e-3, 2]],
            "probs_": [[0.25, 0.75], [0.5, 0.5]], "probs": [0.25, 0.75], "pred": 1, "ok": 1, "pred_knowless": 0,
            "ok_knowless": 0, "rectified": 1, "selected_knowledge_ix": 0}}"#
        )
    };
    let file = format!("[{}, {}]", item("lives", "Q \\n (A) x (B) y"), item("twohop", "R \\n (A) x (B) y"));
    let file = file.replace("\n (A)", "\\n (A)").into_bytes();
    Fuzz::new("inference.json", vec![file], 1500).run(folder(), |path| {
        let items = knowledge::read_evaluation_file(path, Split::Dev);
        json::read::<Vec<InferenceItem>>(path)?;
        for item in items? {
            assert!(item.question.answer_ix < item.question.choices.len());
        }
        Ok(())
    });
}

#[test]
fn rows_with_rationales() {
    let row =
        r#"{"question": "Which sinks? (A) lead (B) cork", "rationale": "Lead is dense.", "answer": "(A)"}"#;
    let seeds = [format!(r#"{{"0": {row}, "1": {row}}}"#), format!("[{row}]"), format!("{row}\n{row}\n")];
    Fuzz::new("gold.jsonl", seeds.map(String::into_bytes).to_vec(), 1000).run(folder(), |path| {
        for row in read_gold(path, MarioDataset::QuaRel)? {
            assert!(MarioDataset::QuaRel.label_index(&row.answer).is_some());
        }
        Ok(())
    });
    let prompts = r#"[{"dataset": "quarel", "variant": "i2ro", "used_by": ["x"], "prefix": "Q: ", "suffix": "A: ",
        "n_demonstrations": 0}]"#;
    Fuzz::new("prompts.json", vec![prompts.into()], 500)
        .run(folder(), |path| read_few_shot(path).map(drop).map_err(Into::into));
    Fuzz::new("masked.tsv", vec![b"Birds have <mask> wings.\ttwo\n\"Ice\" is <mask>.\tone\n".to_vec()], 1000)
        .run(folder(), |path| read_masked_tsv(path).map(drop).map_err(Into::into));
}

#[test]
fn responses_of_models() {
    let question = "Which sinks? (A) lead (B) cork";
    let teacher = format!(
        r#"{{"0": {{"question": "{question}", "gold_label": "(a)", "predicted_label": "(b)", "predicted_rationale": "x"}}}}"#
    );
    let llama =
        format!(r#"{{"question": "{question}", "trunc_output": "It is dense. So the answer is: (A)."}}"#);
    let columns = format!(r#"{{"question": ["{question}"], "model_response": ["So the answer is (A)."]}}"#);
    let table = format!("question,model_response\n{question},\"Well, so the answer is (A)\"\n");
    let dump = format!(r#"[{{"question": "{question}", "gpt_answer": "So the answer is: (a)"}}]"#);
    let gold =
        [MarioRow { question: question.into(), rationale: "Lead is dense.".into(), answer: "(A)".into() }];
    for (format, seed) in [
        (ResponseFormat::Jsonl, &teacher),
        (ResponseFormat::LlamaJson, &llama),
        (ResponseFormat::QuarkJson, &columns),
        (ResponseFormat::Csv, &table),
        (ResponseFormat::Json, &dump),
    ] {
        Fuzz::new("responses", vec![seed.clone().into_bytes()], 400).run(folder(), |path| {
            let read = read_responses(path, format, MarioDataset::QuaRel, &gold)?;
            assert!(read.responses.iter().all(|response| response.question == question));
            Ok(())
        });
    }
    Fuzz::new("teacher.jsonl", vec![teacher.into_bytes()], 400)
        .run(folder(), |path| read_teacher(path, MarioDataset::QuaRel).map(drop).map_err(Into::into));
}

#[test]
fn answers_of_a_teacher() {
    let messages = |i: usize| {
        format!(
            r#"[{{"role": "system", "content": "Be brief."}}, {{"role": "user", "content": "Why {i}?"}}]"#
        )
    };
    let response = r#"{"id": "x", "choices": [{"index": 1, "message": {"role": "assistant", "content": "No."},
        "finish_reason": "length"}, {"index": 0, "message": {"role": "assistant", "content": null, "refusal": "no"},
        "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}"#
        .replace('\n', "");
    let line = |i: usize, outcome: String| {
        let sampling = r#""max_tokens": 9, "n": 2, "temperature": 0.8, "top_p": 0.9, "stop": ["a"], "seed": 1, "top_k": 5"#;
        let request = format!(r#"{{"model": "m", "messages": {}, {sampling}}}"#, messages(i));
        format!(r#"{{"id": "id-{i}", "request": {request}, {outcome}, "elapsed_ms": 3}}"#)
    };
    let ours =
        [line(0, format!(r#""response": {response}"#)), line(1, r#""error": "status 400: too long""#.into())];
    let asked = |i| format!(r#"{{"model": "m", "messages": {}, "n": 1}}"#, messages(i));
    let others =
        [format!("[{}, {response}]", asked(0)), format!(r#"[{}, [{{"error": "limit"}}]]"#, asked(1))];
    let request = |i: usize, id: &str| Request::new(id, serde_json::from_str(&messages(i)).unwrap());
    // The same messages twice.
    let requests = [request(0, "id-0"), request(1, "id-1"), request(0, "again")];
    let seeds = [ours.join("\n") + "\n", others.join("\n")].map(String::into_bytes);
    Fuzz::new("answers.jsonl", seeds.to_vec(), 1500).run(folder(), |path| {
        let exchanges = read_answers(path)?;
        let answered = exchanges.iter().filter(|exchange| exchange.outcome.is_ok()).count();
        for answer in exchanges.iter().flat_map(|exchange| &exchange.outcome) {
            assert!(!answer.choices.is_empty());
        }
        let answers = match_answers(path, exchanges, &requests)?;
        assert_eq!(answers.len(), requests.len());
        assert!(answers.iter().flatten().count() <= answered);
        Ok(())
    });
}

#[test]
fn multiple_choice_questions() {
    let row = |id: &str, answer: &str| {
        let choices: Vec<String> =
            ('A'..='D').map(|label| format!(r#"{{"label": "{label}", "text": "x, {label}"}}"#)).collect();
        let choices = choices.join(", ");
        format!(
            r#"{{"id": "{id}", "answerKey": "{answer}", "question": {{"stem": "Why?", "choices": [{choices}]}}}}"#
        )
    };
    let lines = format!("{}\n{}\n", row("1", "A"), row("2", "D")).into_bytes();
    Fuzz::new("train.jsonl", vec![lines], 1000).run(folder(), |path| {
        let skipped = Source::Obqa.read(path, BadRows::Skip);
        for question in Source::Obqa.read(path, BadRows::Refuse)?.0 {
            assert!(question.labels().contains(&question.gold));
        }
        skipped.map(drop).map_err(Into::into)
    });
    let array =
        br#"[{"qid": "1", "question": "Is it?", "answer": true}, {"question": "Was it?", "answer": false}]"#;
    Fuzz::new("strategyqa.json", vec![array.to_vec()], 1000).run(folder(), |path| {
        Source::StrategyQa.read(path, BadRows::Skip)?;
        Source::StrategyQa.read(path, BadRows::Refuse)?;
        Ok(())
    });
}

#[test]
fn items_and_pairs() {
    let item = r#"{"input": "Why?\nOptions: A. x, B. y, z", "GT": "B", "general_knowledge": "k.",
        "specific_knowledge": ["For option B, so.", "For option A, not so."]}"#;
    let items = format!("[{item}, {item}]").into_bytes();
    Fuzz::new("items.json", vec![items], 1000).run(folder(), |path| {
        for item in read_items(path)? {
            assert_eq!(item.reasons.len(), item.question.options.len());
        }
        Ok(())
    });
    let pair = r#"{"prompt": "p", "chosen": "a", "rejected": "b", "weight": 0.5, "source": "s"}"#;
    let seeds = [format!("[{pair}, {pair}]"), format!("{pair}\n{pair}\n")].map(String::into_bytes);
    Fuzz::new("pairs.json", seeds.to_vec(), 1000).run(folder(), |path| {
        for example in preference::read(path)?.examples {
            assert!(example.problem().is_none());
        }
        Ok(())
    });
}

/// Rows of one's own, in each form that they may have.
#[test]
fn rows_of_ones_own() {
    let rows = [
        r#"{"prompt": "p", "completion": "c", "reward": 0.5, "answer": 7, "choices": ["a", "b"]}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}], "reward": 1, "answer": "x"}"#,
    ];
    let seeds = || {
        rows.iter().flat_map(|row| {
            [format!("[{row}, {row}]"), format!("{row}\r\n\n{row}\n"), format!("\u{feff}{row}")]
        })
    };
    let columns = Columns::default();
    let read = |path: &std::path::Path| {
        // Each reader stands for itself: what one refuses, another may take.
        let all: [Result<usize, ruminate_datasets::Error>; 3] = [
            read_supervised(path, &columns).map(|rows| rows.len()),
            read_prompts(path, &columns).map(|rows| rows.len()),
            read_weighted(path, &columns).map(|rows| rows.len()),
        ];
        for counted in all {
            assert!(counted? > 0, "a file without rows is an error");
        }
        Ok(())
    };
    let plain: Vec<Vec<u8>> = seeds().map(String::into_bytes).collect();
    Fuzz::new("rows.jsonl", plain, 3000).run(folder(), read);
    let compressed = |text: String| {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, text.as_bytes()).unwrap();
        gzip.finish().unwrap()
    };
    Fuzz::new("rows.jsonl.gz", seeds().map(compressed).collect(), 1000).run(folder(), read);
    let dialogue = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    Fuzz::new("dialogues.jsonl", vec![format!("{dialogue}\n{dialogue}\n").into_bytes()], 1000).run(
        folder(),
        |path| {
            assert!(!read_supervised(path, &columns)?.is_empty());
            Ok(())
        },
    );
}

#[test]
fn checkable_problems() {
    let rows = r###"{"question": "1+1?", "answer": "so\n#### 2"}
{"question": "1000+1?", "answer": "so\n#### 1,001"}
"###;
    Fuzz::new("train.jsonl", vec![rows.into()], 1000).run(folder(), |path| {
        Benchmark::Gsm8k.read(path, BadRows::Skip, Default::default())?;
        Benchmark::Gsm8k.read(path, BadRows::Refuse, Default::default())?;
        Ok(())
    });
}

#[test]
fn logs_of_episodes() {
    let episode = |row: usize| {
        format!(
            r#""{row}": {{"task_id": {row}, "query": "q", "answer": "so #### 5", "max_reward": 0, "turn_history": {{
            "best_actions": ["a"], "actions": {{"0": ["a", "b"], "1": ["blocked"]}},
            "best_observations": ["no"], "observations": {{"0": ["no", "no"]}},
            "best_rewards": [0], "rewards": {{"0": [0, -1], "1": [null]}}}}}}"#
        )
    };
    let log = format!("{{{}, {}}}", episode(0), episode(3)).into_bytes();
    Fuzz::new("2_turns.json", vec![log], 1000).run(folder(), |path| {
        let log = Log::read(path)?;
        let environment = Benchmark::Gsm8k.environment(Default::default());
        let attempts: usize = log.episodes.iter().map(|e| e.turn_history.best_actions.len()).sum();
        assert!(log.rescore(&*environment, true).actions >= attempts);
        assert!(convert(&log, &*environment, &ConvertConfig::default()).examples.len() <= attempts);
        Ok(())
    });
}

#[test]
fn chat_templates() {
    let template =
        "{% for m in messages %}{{ bos_token }}[{{ m['role'] | upper }}] {{ m.content.strip() }}{% endfor %}";
    let config = format!("{{\"bos_token\": {{\"content\": \"<s>\"}}, \"chat_template\": \"{template}\"}}");
    let dialogue = [Message::new("user", "q"), Message::new("assistant", "a")];
    let fuzz = Fuzz::new("tokenizer_config.json", vec![config.into_bytes()], 1000);
    Fuzz { places: &["chat template"], ..fuzz }.run(folder(), |path| {
        let template = ChatTemplate::open(path.parent().unwrap_or(path))?;
        template.prompt(&dialogue)?;
        template.conversation(&dialogue)?;
        Ok(())
    });
}

#[test]
fn what_a_checkpoint_was_trained_on() {
    let (name, bytes) = TrainedOn { template: "llama-2".into() }.file();
    Fuzz::new(&name, vec![bytes], 1000).run(folder(), |path| {
        TrainedOn::other_than("zephyr", path.parent().unwrap_or(path))?;
        Ok(())
    });
}
