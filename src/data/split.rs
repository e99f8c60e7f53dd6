//! Stratified, reproducible selection of records by label.

use super::error::{Error, Result};
use super::pack::shuffled;

/// Takes `n` of the records, each label in proportion to its share, and gives back (taken, rest) as indices into
/// `labels`, both in ascending order. Which records of a label are taken depends on `seed` alone.
///
/// Shares are rounded by largest remainder, so the counts add up to `n` exactly. Records without a label (`None`) form
/// one group of their own.
pub fn stratified(labels: &[Option<&str>], n: usize, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    if n > labels.len() {
        return Err(Error::NotEnough { wanted: n, available: labels.len() });
    }
    let mut groups: std::collections::BTreeMap<Option<&str>, Vec<usize>> = Default::default();
    for (index, label) in labels.iter().enumerate() {
        groups.entry(*label).or_default().push(index);
    }
    let quotas = largest_remainder(&groups.values().map(Vec::len).collect::<Vec<_>>(), n);
    let mut taken = vec![false; labels.len()];
    for (stream, (group, quota)) in groups.values().zip(quotas).enumerate() {
        for at in shuffled(group.len(), seed, stream as u64).into_iter().take(quota) {
            taken[group[at]] = true;
        }
    }
    Ok((0..labels.len()).partition(|i| taken[*i]))
}

/// `n` divided in proportion to `sizes`; no part exceeds its size because `n` does not exceed their sum.
fn largest_remainder(sizes: &[usize], n: usize) -> Vec<usize> {
    let total: usize = sizes.iter().sum();
    if total == 0 {
        return vec![0; sizes.len()];
    }
    let mut parts: Vec<usize> = sizes.iter().map(|s| s * n / total).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    // Ties go to the earlier group, because the sort is stable.
    by_remainder.sort_by_key(|i| std::cmp::Reverse(sizes[*i] * n % total));
    let missing = n - parts.iter().sum::<usize>();
    for i in by_remainder.into_iter().take(missing) {
        parts[i] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_are_proportional() {
        assert_eq!(largest_remainder(&[552, 338, 110], 297), [164, 100, 33]);
        assert_eq!(largest_remainder(&[1, 1, 1], 2), [1, 1, 0]);
        assert_eq!(largest_remainder(&[3, 0], 3), [3, 0]);
        assert_eq!(largest_remainder(&[], 0), [0usize; 0]);
    }

    #[test]
    fn a_split_is_disjoint_whole_and_seeded() {
        let labels: Vec<_> = (0..100).map(|i| Some(if i % 4 == 0 { "no" } else { "yes" })).collect();
        let (taken, rest) = stratified(&labels, 20, 1).unwrap();
        assert_eq!((taken.len(), rest.len()), (20, 80));
        assert_eq!(taken.iter().filter(|i| labels[**i] == Some("no")).count(), 5);
        let mut all: Vec<_> = taken.iter().chain(&rest).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(stratified(&labels, 20, 1).unwrap().0, taken);
        assert_ne!(stratified(&labels, 20, 2).unwrap().0, taken);
    }

    #[test]
    fn more_than_there_are_is_an_error() {
        assert!(matches!(stratified(&[None], 2, 0), Err(Error::NotEnough { wanted: 2, available: 1 })));
    }
}
