//! How often rows are taken, and which are held out.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::TextOrMessages;
use crate::teacher::Message;
use crate::{Order, SupervisedExample};

/// Numbers of times that each of `rows` rows is taken: as often as the whole part of `weight` says, and those that the seed draws for its fraction
/// once more.
pub(super) fn times(rows: usize, weight: f64, seed: u64) -> Vec<usize> {
    let mut times = vec![weight.trunc() as usize; rows];
    let part = (rows as f64 * weight.fract()).round() as usize;
    if part > 0 {
        Order::shuffled(rows, seed).indices(0).into_iter().take(part).for_each(|row| times[row] += 1);
    }
    times
}

/// Each row as often as `times` says: all of them in order, then those that are taken a second time, and so on.
pub(super) fn repeat<T: Clone>(rows: Vec<T>, times: &[usize]) -> Vec<T> {
    let most = times.iter().copied().max().unwrap_or(0);
    let mut again = vec![];
    for round in 1..most {
        again.extend(rows.iter().zip(times).filter(|(_, times)| **times > round).map(|(row, _)| row.clone()));
    }
    let mut all: Vec<T> =
        rows.into_iter().zip(times).filter(|(_, times)| **times > 0).map(|(row, _)| row).collect();
    all.append(&mut again);
    all
}

/// Marks the rows that are held out: `share` of them, at least one of twenty, drawn by the seed. Rows with the same key are on one side:
/// fewer are held out where many have the same, but of twenty rows with two keys or more always some.
pub(super) fn held_out(keys: &[u64], share: f64, seed: u64) -> Vec<bool> {
    const LEAST: usize = 20;
    let wanted = (keys.len() as f64 * share).round() as usize;
    let wanted = if share > 0.0 && keys.len() >= LEAST { wanted.max(1) } else { wanted };
    if wanted == 0 {
        return vec![false; keys.len()];
    }
    // Groups are numbered as they come, so what is drawn does not depend on the hash function.
    let mut numbers: HashMap<u64, usize> = HashMap::new();
    let mut sizes: Vec<usize> = vec![];
    let mut group = |key: &u64| {
        let number = *numbers.entry(*key).or_insert(sizes.len());
        sizes.resize(sizes.len().max(number + 1), 0);
        sizes[number] += 1;
        number
    };
    let groups: Vec<usize> = keys.iter().map(&mut group).collect();
    let (mut out, mut count) = (vec![false; sizes.len()], 0);
    for number in Order::shuffled(sizes.len(), seed).indices(0) {
        // A larger group would leave too little to train on, or far too much to validate with.
        if count + sizes[number] <= wanted {
            out[number] = true;
            count += sizes[number];
        }
    }
    // Every key has more rows than are wanted: those of the rarest are held out, unless there is no other.
    if count == 0 && keys.len() >= LEAST && sizes.len() > 1 {
        let drawn = Order::shuffled(sizes.len(), seed).indices(0);
        if let Some(rarest) = drawn.into_iter().min_by_key(|&number| sizes[number]) {
            out[rarest] = true;
        }
    }
    groups.into_iter().map(|number| out[number]).collect()
}

/// A number that two prompts share if they are the same: of the text without blanks around it, or of what was said
/// before the assistant's first message, apart from the system's. So a question is the same as a text and as a message, and the turns of one dialogue belong together.
pub(super) fn key(prompt: &TextOrMessages) -> u64 {
    match prompt {
        TextOrMessages::Text(text) => text_key(text),
        TextOrMessages::Messages(messages) => opening_key(messages),
    }
}

pub(super) fn text_key(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.trim().hash(&mut hasher);
    hasher.finish()
}

pub(super) fn opening_key(messages: &[Message]) -> u64 {
    let opening = messages.iter().take_while(|message| message.role != "assistant");
    let said: Vec<&str> =
        opening.filter(|message| message.role != "system").map(|message| message.content.trim()).collect();
    if said.is_empty() {
        let all: Vec<&str> = messages.iter().map(|message| message.content.trim()).collect();
        return text_key(&all.join("\n"));
    }
    text_key(&said.join("\n"))
}

pub(super) fn supervised_key(example: &SupervisedExample) -> u64 {
    match example {
        SupervisedExample::Completion { prompt, .. } => text_key(prompt),
        SupervisedExample::Answer { prompt: messages, .. } | SupervisedExample::Dialogue { messages } => {
            opening_key(messages)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_held_out_and_keys_stay_together() {
        let keys: Vec<u64> = (0..200).map(|i| i / 4).collect();
        let out = held_out(&keys, 0.1, 1);
        assert_eq!(out.iter().filter(|out| **out).count(), 20);
        assert!(out.chunks(4).all(|group| group.iter().all(|row| *row == group[0])));
        assert_eq!(held_out(&keys, 0.1, 1), out);
        assert_ne!(held_out(&keys, 0.1, 2), out);
        // Other keys of the same pattern change nothing.
        assert_eq!(held_out(&keys.iter().map(|key| !key).collect::<Vec<_>>(), 0.1, 1), out);
        // Of a few rows, none is taken away; of twenty, one is.
        let count = |keys: &[u64], share| held_out(keys, share, 1).iter().filter(|out| **out).count();
        let distinct: Vec<u64> = (0..20).collect();
        assert_eq!([5, 19, 20].map(|rows| count(&distinct[..rows], 0.01)), [0, 0, 1]);
        assert_eq!(count(&distinct, 0.0), 0);
        // Four responses to each of five prompts: one prompt's are held out, and of two prompts those of the rarer.
        let fives: Vec<u64> = (0..20).map(|i| i / 4).collect();
        assert_eq!([5, 19, 20].map(|rows| count(&fives[..rows], 0.05)), [0, 0, 4]);
        assert_eq!(count(&[&[7; 25][..], &[8; 15]].concat(), 0.05), 15);
        // One prompt for all: nothing can be held out.
        assert_eq!(count(&[7; 50], 0.5), 0);
    }

    #[test]
    fn weights_repeat_and_thin_out() {
        let rows: Vec<usize> = (0..10).collect();
        let mixed = |weight| repeat(rows.clone(), &times(10, weight, 1));
        assert_eq!(mixed(1.0), rows);
        assert_eq!(mixed(2.0), [&rows[..], &rows].concat());
        let half = mixed(0.5);
        assert!(half.len() == 5 && half.is_sorted());
        assert_eq!(mixed(0.5), half);
        assert_ne!(repeat(rows.clone(), &times(10, 0.5, 2)), half);
        assert_eq!(mixed(2.5), [&rows[..], &rows, &half].concat());
        assert_eq!(mixed(0.01).len(), 0);
    }

    #[test]
    fn prompts_are_the_same_in_every_form() {
        let [system, user, assistant] =
            [("system", "s"), ("user", "q"), ("assistant", "a")].map(|(role, text)| Message::new(role, text));
        let same = [
            text_key("q\n"),
            opening_key(std::slice::from_ref(&user)),
            opening_key(&[system.clone(), user.clone()]),
            opening_key(&[user.clone(), assistant.clone(), Message::new("user", "again")]),
            supervised_key(&SupervisedExample::Dialogue {
                messages: vec![system.clone(), user.clone(), assistant.clone()],
            }),
        ];
        assert!(same.iter().all(|key| *key == same[0]));
        assert_ne!(opening_key(&[assistant]), opening_key(&[system]));
    }
}
