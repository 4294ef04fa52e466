//! From rows of token ids to padded tensors.

use tch::{Device, Kind, Tensor};

pub use ruminate_datasets::TokenId;
pub use ruminate_datasets::chat::IGNORED;

use crate::{Error, Result};

/// On which side rows shorter than the longest are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Fill on the left: decoder-only generation.
    Left,
    /// Fill on the right: encoders, and training.
    Right,
}

/// A padded batch: `ids` and `mask` are `[batch, time]` `i64` tensors, `mask` is 1 for real tokens.
#[derive(Debug)]
pub struct Batch {
    /// Token ids `[batch, time]`.
    pub ids: Tensor,
    /// 1 for real tokens `[batch, time]`.
    pub mask: Tensor,
    /// Real tokens in the batch.
    pub tokens: u64,
}

impl Batch {
    /// Pads the rows to the longest one with `pad`.
    ///
    /// # Errors
    /// When there is no row, or a row is empty: such a row has nothing that attention could look at.
    pub fn new<R: AsRef<[TokenId]>>(rows: &[R], pad: TokenId, side: Side, device: Device) -> Result<Self> {
        check_rows(rows)?;
        let (ids, width) = pad_rows(rows, pad, side)?;
        let mask: Vec<i64> = rows
            .iter()
            .flat_map(|row| {
                let (real, fill) = (row.as_ref().len(), width - row.as_ref().len());
                let (first, second) = match side {
                    Side::Left => ((0, fill), (1, real)),
                    Side::Right => ((1, real), (0, fill)),
                };
                std::iter::repeat_n(first.0, first.1).chain(std::iter::repeat_n(second.0, second.1))
            })
            .collect();
        let tokens = rows.iter().map(|r| r.as_ref().len() as u64).sum();
        let shape = [rows.len() as i64, width as i64];
        Ok(Self { ids: to_device(&ids, shape, device)?, mask: to_device(&mask, shape, device)?, tokens })
    }

    /// Rows of the batch.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.ids.size()[0]
    }
}

/// Targets of a batch: where there is a loss and which token is expected there.
#[derive(Debug)]
pub struct Labels {
    /// Expected ids `[batch, time]`, [`IGNORED`] where there is no loss.
    pub ids: Tensor,
    /// Positions with a loss in the flattened `[batch * time]`, so that only they are projected to the vocabulary.
    pub positions: Tensor,
    /// The expected id at each of `positions`.
    pub targets: Tensor,
    /// 1.0 where there is a loss `[batch, time]`, `f32`.
    pub mask: Tensor,
    /// Number of positions with a loss.
    pub count: u64,
}

impl Labels {
    /// Pads the rows on the right with [`IGNORED`]; rows may hold [`IGNORED`] themselves.
    ///
    /// # Errors
    /// When there is no row.
    pub fn new<R: AsRef<[TokenId]>>(rows: &[R], device: Device) -> Result<Self> {
        let (ids, width) = pad_rows(rows, IGNORED, Side::Right)?;
        let positions: Vec<i64> =
            ids.iter().enumerate().filter(|&(_, &id)| id != IGNORED).map(|(i, _)| i as i64).collect();
        let targets: Vec<i64> = ids.iter().copied().filter(|&id| id != IGNORED).collect();
        let shape = [rows.len() as i64, width as i64];
        let ids = to_device(&ids, shape, device)?;
        let count = targets.len() as u64;
        Ok(Self {
            mask: ids.f_ne(IGNORED)?.f_to_kind(Kind::Float)?,
            ids,
            positions: to_device(&positions, [count as i64], device)?,
            targets: to_device(&targets, [count as i64], device)?,
            count,
        })
    }

    /// Puts one value per labelled position back into `[batch, time]`, 0 elsewhere.
    pub(crate) fn scatter(&self, values: &Tensor) -> Result<Tensor> {
        let flat = self.ids.numel() as i64;
        let zeros = Tensor::f_zeros([flat], (values.kind(), values.device()))?;
        Ok(zeros.f_index_copy(0, &self.positions, values)?.f_view_(self.ids.size())?)
    }
}

/// Refuses rows without a token: there is nothing in them that attention could look at.
pub(crate) fn check_rows<R: AsRef<[TokenId]>>(rows: &[R]) -> Result<()> {
    match rows.iter().position(|row| row.as_ref().is_empty()) {
        Some(i) => Err(Error::invalid("batch", format!("row {i} of {} has no token", rows.len()))),
        None => Ok(()),
    }
}

/// Refuses ids outside the vocabulary.
pub(crate) fn check_ids<R: AsRef<[TokenId]>>(vocab: i64, rows: &[R]) -> Result<()> {
    for (i, row) in rows.iter().enumerate() {
        if let Some(id) = row.as_ref().iter().find(|&&id| id < 0 || id >= vocab) {
            let reason = format!("row {i} holds id {id}, outside the vocabulary of {vocab}");
            return Err(Error::invalid("batch", reason));
        }
    }
    Ok(())
}

/// Rows and columns of a tensor of ids, none of which may be outside the vocabulary. It waits for the device.
pub(crate) fn check_id_tensor(what: &'static str, ids: &Tensor, vocab: i64) -> Result<(i64, i64)> {
    let &[rows, time] = &ids.size()[..] else {
        return Err(Error::invalid(what, format!("{:?}, but must be [batch, time]", ids.size())));
    };
    if ids.kind() != Kind::Int64 || rows == 0 || time == 0 {
        let reason = format!("{:?} of kind {:?}, but must hold i64 ids", ids.size(), ids.kind());
        return Err(Error::invalid(what, reason));
    }
    check_range(what, ids, vocab)?;
    Ok((rows, time))
}

/// Refuses a tensor with ids outside the vocabulary.
pub(crate) fn check_range(what: &'static str, ids: &Tensor, vocab: i64) -> Result<()> {
    if ids.numel() == 0 {
        return Ok(());
    }
    let (least, largest) = (ids.f_min()?.f_int64_value(&[])?, ids.f_max()?.f_int64_value(&[])?);
    if least >= 0 && largest < vocab {
        return Ok(());
    }
    let id = if least < 0 { least } else { largest };
    Err(Error::invalid(what, format!("token {id} is outside the vocabulary of {vocab}")))
}

/// Refuses states of another width.
pub(crate) fn check_states(states: &Tensor, width: i64) -> Result<()> {
    match states.size().last() {
        Some(&last) if last == width => Ok(()),
        _ => Err(Error::invalid("states", format!("{:?}, but must be [..., {width}]", states.size()))),
    }
}

/// Flattened rows, padded to the longest, and that length.
fn pad_rows<R: AsRef<[TokenId]>>(rows: &[R], pad: TokenId, side: Side) -> Result<(Vec<i64>, usize)> {
    let width = rows.iter().map(|r| r.as_ref().len()).max().unwrap_or(0);
    if width == 0 {
        return Err(Error::invalid("batch", "there is no token in it"));
    }
    let mut flat = Vec::with_capacity(rows.len() * width);
    for row in rows {
        let row = row.as_ref();
        let fill = std::iter::repeat_n(pad, width - row.len());
        match side {
            Side::Left => flat.extend(fill.chain(row.iter().copied())),
            Side::Right => flat.extend(row.iter().copied().chain(fill)),
        }
    }
    Ok((flat, width))
}

/// Runs `work` on rows in batches of similar length and puts the results back into their order, so that short rows
/// are not padded to the longest of all. `work` gets the indices of its rows, and returns one result for each.
///
/// # Errors
/// Those of `work`.
pub fn by_length<T, E>(
    rows: &[impl AsRef<[TokenId]>],
    batch_size: usize,
    mut work: impl FnMut(&[usize]) -> std::result::Result<Vec<T>, E>,
) -> std::result::Result<Vec<T>, E> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&i| rows[i].as_ref().len());
    let mut results: Vec<Option<T>> = rows.iter().map(|_| None).collect();
    for batch in order.chunks(batch_size.max(1)) {
        for (&i, result) in batch.iter().zip(work(batch)?) {
            results[i] = Some(result);
        }
    }
    Ok(results.into_iter().flatten().collect())
}

fn to_device<const N: usize>(flat: &[i64], shape: [i64; N], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(flat)?.f_view_(shape)?.f_to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pads_on_the_asked_side() {
        let rows = [vec![5, 6, 7], vec![8]];
        let right = Batch::new(&rows, 0, Side::Right, Device::Cpu).unwrap();
        assert_eq!(Vec::<Vec<i64>>::try_from(&right.ids).unwrap(), [[5, 6, 7], [8, 0, 0]]);
        assert_eq!(Vec::<Vec<i64>>::try_from(&right.mask).unwrap(), [[1, 1, 1], [1, 0, 0]]);
        let left = Batch::new(&rows, 0, Side::Left, Device::Cpu).unwrap();
        assert_eq!(Vec::<Vec<i64>>::try_from(&left.ids).unwrap(), [[5, 6, 7], [0, 0, 8]]);
        assert_eq!(Vec::<Vec<i64>>::try_from(&left.mask).unwrap(), [[1, 1, 1], [0, 0, 1]]);
        assert_eq!(right.tokens, 4);
    }

    #[test]
    fn an_empty_row_is_named() {
        let error = Batch::new(&[vec![1], vec![]], 0, Side::Right, Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
    }

    #[test]
    fn by_length_puts_the_results_back_into_their_order() {
        let lengths = [5, 1, 9, 1, 3, 9, 2];
        let rows: Vec<Vec<TokenId>> = lengths.iter().map(|&n| vec![7; n]).collect();
        for batch_size in [0, 1, 2, 3, 100] {
            let mut batches = vec![];
            let results = by_length(&rows, batch_size, |batch| {
                batches.push(batch.to_vec());
                Ok::<_, Error>(batch.iter().map(|&i| (i, rows[i].len())).collect())
            });
            let expected: Vec<_> = lengths.iter().copied().enumerate().collect();
            assert_eq!(results.unwrap(), expected, "{batch_size}");
            assert!(batches.iter().all(|b| b.len() <= batch_size.max(1)));
            // Neighbours in a batch are neighbours in length, equal ones in the order in which they came.
            assert_eq!(batches.concat(), [1, 3, 6, 4, 0, 2, 5]);
        }
        let nothing: [Vec<TokenId>; 0] = [];
        assert_eq!(by_length(&nothing, 4, |_| Ok::<_, Error>(vec![()])).unwrap(), []);
        assert!(by_length::<(), _>(&rows, 4, |_| Err(Error::invalid("x", "no"))).is_err());
    }

    #[test]
    fn labels_know_their_positions() {
        let labels = Labels::new(&[vec![4, IGNORED, 6], vec![7]], Device::Cpu).unwrap();
        assert_eq!(labels.count, 3);
        assert_eq!(Vec::<i64>::try_from(&labels.positions).unwrap(), [0, 2, 3]);
        let back = labels.scatter(&Tensor::from_slice(&[1f32, 2.0, 3.0])).unwrap();
        assert_eq!(Vec::<Vec<f32>>::try_from(&back).unwrap(), [[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]);
    }
}
