//! LoRP: blocks by the redundancy of their hidden states within clusters of alike ones.
//!
//! Locality-aware redundancy pruning (arXiv:2605.27786). `S` is the mean cosine between what enters any two blocks. Its
//! locality, `-log2` of the mean off its diagonal (eq. 6), says into how many clusters blocks are divided (section 5.1), by
//! spectral clustering of `(S + 1) / 2` (eq. 7). First the most redundant block of each cluster goes (eqs. 8 and 9), then
//! always one of the cluster whose blocks are the most alike (eqs. 10 and 11). The first and the last block stay.
//!
//! The paper's program begins k-means at random; here it begins at every block in turn, and the tightest clusters count.

use anyhow::{Result, anyhow, ensure};
use faer::{Mat, Side};

/// Rounds of k-means at most; it is stable far earlier.
const MAX_ROUNDS: usize = 300;

/// The order in which blocks go: for each block its place, from 0. The first and the last block come last.
///
/// `cosine` is `[n_blocks, n_blocks]`: of what enters block `i` and what enters block `j`.
///
/// # Errors
/// Fewer than three blocks; a matrix that is not square or has values that are no cosines.
pub fn places(cosine: &[Vec<f64>]) -> Result<Vec<f64>> {
    let n = cosine.len();
    ensure!(n > 2, "method 'lorp' needs three blocks or more, the model has {n}");
    let is_cosine = |value: &f64| (-1.001..=1.001).contains(value);
    ensure!(
        cosine.iter().all(|row| row.len() == n && row.iter().all(is_cosine)),
        "bug: what is to be clustered are no cosines"
    );
    let labels = clusters(cosine, n_clusters(cosine).min(n))?;
    let order = order(cosine, &labels);
    let mut places = vec![0.0; n];
    for (place, block) in order.into_iter().chain([n - 1, 0]).enumerate() {
        places[block] = place as f64;
    }
    Ok(places)
}

/// How many clusters, by the representation locality score (section 5.1).
fn n_clusters(cosine: &[Vec<f64>]) -> usize {
    let n = cosine.len();
    let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    let locality = -mean(pairs.map(|(i, j)| cosine[i][j])).unwrap_or(1.0).log2();
    match locality {
        score if score >= 1.0 => 2,
        score if score >= 0.7 => 3,
        // States that are on average opposite have no locality.
        score if score.is_nan() => 2,
        _ => 4,
    }
}

/// The cluster of each block, by k-means. Its points are the first `k` eigenvectors of the normalised Laplacian, each divided
/// by the roots of degrees.
fn clusters(cosine: &[Vec<f64>], k: usize) -> Result<Vec<usize>> {
    let n = cosine.len();
    let affinity = |i: usize, j: usize| {
        if i == j { 0.0 } else { f64::midpoint(cosine[i][j], 1.0).max(0.0) }
    };
    let roots: Vec<f64> = (0..n)
        .map(|i| (0..n).map(|j| affinity(i, j)).sum::<f64>().sqrt())
        // A block that is like no other stands alone.
        .map(|root| if root > 0.0 { root } else { 1.0 })
        .collect();
    let laplacian = Mat::from_fn(n, n, |i, j| {
        let unit = if i == j { 1.0 } else { 0.0 };
        unit - affinity(i, j) / (roots[i] * roots[j])
    });
    let eigen = laplacian
        .self_adjoint_eigen(Side::Lower)
        .map_err(|error| anyhow!("the clusters of hidden states cannot be found: {error:?}"))?;
    let vectors = eigen.U();
    let points: Vec<Vec<f64>> =
        (0..n).map(|i| (0..k).map(|component| vectors[(i, component)] / roots[i]).collect()).collect();
    Ok(k_means(&points, k))
}

/// The tightest clusters of those that begin with each point. One after another, the farthest from the points before begins the
/// next.
fn k_means(points: &[Vec<f64>], k: usize) -> Vec<usize> {
    let runs = (0..points.len()).map(|start| lloyd(points, farthest_first(points, k, start)));
    let best = runs.min_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map_or_else(Vec::new, |(_, labels)| labels)
}

fn farthest_first(points: &[Vec<f64>], k: usize, start: usize) -> Vec<Vec<f64>> {
    let mut centres = vec![points[start].clone()];
    while centres.len() < k {
        let gap = |point: &Vec<f64>| {
            let distances = centres.iter().map(|centre| distance(point, centre));
            distances.fold(f64::INFINITY, f64::min)
        };
        // The first of several.
        let farthest = points.iter().rev().max_by(|a, b| gap(a).total_cmp(&gap(b)));
        centres.extend(farthest.cloned());
    }
    centres
}

/// Lloyd's algorithm from these centres: the sum of squared distances, and the cluster of each point.
fn lloyd(points: &[Vec<f64>], mut centres: Vec<Vec<f64>>) -> (f64, Vec<usize>) {
    let mut labels = vec![0; points.len()];
    for _ in 0..MAX_ROUNDS {
        let nearest = |point: &Vec<f64>| {
            let order = |&a: &usize, &b: &usize| {
                distance(point, &centres[a]).total_cmp(&distance(point, &centres[b]))
            };
            (0..centres.len()).min_by(order).unwrap_or(0)
        };
        let next: Vec<usize> = points.iter().map(nearest).collect();
        let is_stable = next == labels;
        labels = next;
        for (cluster, centre) in centres.iter_mut().enumerate() {
            let members = || points.iter().zip(&labels).filter(|(_, label)| **label == cluster);
            for (dim, value) in centre.iter_mut().enumerate() {
                *value = mean(members().map(|(point, _)| point[dim])).unwrap_or(*value);
            }
        }
        if is_stable {
            break;
        }
    }
    let total = points.iter().zip(&labels).map(|(point, &label)| distance(point, &centres[label])).sum();
    (total, labels)
}

/// Squared.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum()
}

/// All blocks but the first and last, in order of removal.
fn order(cosine: &[Vec<f64>], labels: &[usize]) -> Vec<usize> {
    let n = cosine.len();
    // Clusters by their first block.
    let mut found: Vec<usize> = Vec::new();
    labels.iter().for_each(|label| {
        if !found.contains(label) {
            found.push(*label);
        }
    });
    let mut clusters: Vec<Cluster> = found
        .iter()
        .map(|label| Cluster::new(cosine, (0..n).filter(|&i| labels[i] == *label).collect()))
        .collect();
    let mut order: Vec<usize> = clusters.iter_mut().filter_map(Cluster::take).collect();
    loop {
        let rest = clusters.iter_mut().filter(|cluster| !cluster.candidates.is_empty());
        // The first of several.
        let most_alike = rest.rev().max_by(|a, b| a.alike(cosine).total_cmp(&b.alike(cosine)));
        match most_alike.and_then(Cluster::take) {
            Some(block) => order.push(block),
            None => return order,
        }
    }
}

/// Blocks of alike hidden states.
struct Cluster {
    /// Those that are still there.
    members: Vec<usize>,
    /// Those that may go, the most redundant last.
    candidates: Vec<usize>,
}

impl Cluster {
    fn new(cosine: &[Vec<f64>], members: Vec<usize>) -> Self {
        let last = cosine.len() - 1;
        let redundancy = |block: usize| {
            let others = members.iter().filter(|&&other| other != block);
            mean(others.map(|&other| cosine[block][other])).unwrap_or(f64::NEG_INFINITY)
        };
        let mut candidates: Vec<usize> =
            members.iter().copied().filter(|&i| i != 0 && i != last).rev().collect();
        // Stable, so that the lowest number of equals is last.
        candidates.sort_by(|&a, &b| redundancy(a).total_cmp(&redundancy(b)));
        Self { members, candidates }
    }

    /// The mean cosine of those that are still there (eq. 10).
    fn alike(&self, cosine: &[Vec<f64>]) -> f64 {
        let pairs = self.members.iter().enumerate();
        let pairs = pairs.flat_map(|(at, &i)| self.members[at + 1..].iter().map(move |&j| (i, j)));
        mean(pairs.map(|(i, j)| cosine[i][j])).unwrap_or(f64::NEG_INFINITY)
    }

    /// Lets the most redundant block go.
    fn take(&mut self) -> Option<usize> {
        let block = self.candidates.pop()?;
        self.members.retain(|&member| member != block);
        Some(block)
    }
}

/// The mean, if there is a value.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.fold((0.0, 0.0), |(n, sum), value| (n + 1.0, sum + value));
    (n > 0.0).then(|| sum / n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::noise::noise;

    /// Cosines of random unit vectors that drift, with jumps at `cuts`.
    fn drifting(n: usize, seed: u64, cuts: &[usize]) -> Vec<Vec<f64>> {
        let mut next = noise(seed);
        let mut state = [0.0; 6];
        let states: Vec<[f64; 6]> = (0..n)
            .map(|i| {
                let size = if i == 0 || cuts.contains(&i) { 2.0 } else { 0.15 };
                state.iter_mut().for_each(|value| *value += size * f64::from(next()));
                state
            })
            .collect();
        let dot = |a: &[f64; 6], b: &[f64; 6]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let cosine = |a, b| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        states.iter().map(|a| states.iter().map(|b| cosine(a, b).clamp(-1.0, 1.0)).collect()).collect()
    }

    /// The smallest sum of squared distances with at most `k` clusters. All divisions are tried.
    fn tightest(points: &[Vec<f64>], k: usize) -> f64 {
        let n = points.len();
        let n_divisions = k.pow(u32::try_from(n).unwrap());
        let total = |code: usize| -> f64 {
            let label = |i: usize| code / k.pow(u32::try_from(i).unwrap()) % k;
            (0..k)
                .map(|cluster| {
                    let members: Vec<&Vec<f64>> =
                        (0..n).filter(|&i| label(i) == cluster).map(|i| &points[i]).collect();
                    let centre: Vec<f64> = (0..points[0].len())
                        .map(|dim| members.iter().map(|p| p[dim]).sum::<f64>() / members.len().max(1) as f64)
                        .collect();
                    members.iter().map(|point| distance(point, &centre)).sum::<f64>()
                })
                .sum()
        };
        (0..n_divisions).map(total).fold(f64::INFINITY, f64::min)
    }

    /// Stages 1 and 2 as the paper's program writes them, from labels.
    fn naive_order(cosine: &[Vec<f64>], labels: &[usize]) -> Vec<usize> {
        let n = cosine.len();
        let mut names: Vec<usize> = Vec::new();
        for &label in labels {
            if !names.contains(&label) {
                names.push(label);
            }
        }
        let members: Vec<Vec<usize>> =
            names.iter().map(|&k| (0..n).filter(|&i| labels[i] == k).collect()).collect();
        let redundancy = |i: usize, all: &[usize]| {
            let others: Vec<f64> = all.iter().filter(|&&m| m != i).map(|&m| cosine[i][m]).collect();
            match others.len() {
                0 => f64::NEG_INFINITY,
                n => others.iter().sum::<f64>() / n as f64,
            }
        };
        let mut gone: Vec<usize> = Vec::new();
        let pick = |gone: &[usize], k: usize| {
            let free = members[k].iter().copied().filter(|i| *i != 0 && *i != n - 1 && !gone.contains(i));
            free.fold(None, |best: Option<usize>, i| match best {
                Some(b) if redundancy(b, &members[k]) >= redundancy(i, &members[k]) => Some(b),
                _ => Some(i),
            })
        };
        let n_clusters = members.len();
        for k in 0..n_clusters {
            if let Some(i) = pick(&gone, k) {
                gone.push(i);
            }
        }
        loop {
            let mut best: Option<(f64, usize)> = None;
            for (k, members) in members.iter().enumerate() {
                if pick(&gone, k).is_none() {
                    continue;
                }
                let rest: Vec<usize> = members.iter().copied().filter(|i| !gone.contains(i)).collect();
                let mut cosines = Vec::new();
                for (at, &i) in rest.iter().enumerate() {
                    cosines.extend(rest[at + 1..].iter().map(|&j| cosine[i][j]));
                }
                let alike = match cosines.len() {
                    0 => f64::NEG_INFINITY,
                    n => cosines.iter().sum::<f64>() / n as f64,
                };
                if best.is_none_or(|(most, _)| alike > most) {
                    best = Some((alike, k));
                }
            }
            match best.and_then(|(_, k)| pick(&gone, k)) {
                Some(i) => gone.push(i),
                None => return gone,
            }
        }
    }

    #[test]
    fn the_order_is_that_of_a_naive_twin() {
        for seed in 0..40 {
            let n = 3 + usize::try_from(seed).unwrap() % 20;
            let cosine = drifting(n, seed, &[n / 3, 2 * n / 3]);
            for k in 1..=4.min(n) {
                let labels = clusters(&cosine, k).unwrap();
                let (found, expected) = (order(&cosine, &labels), naive_order(&cosine, &labels));
                assert_eq!(found, expected, "seed {seed}, {k} clusters");
                assert_eq!(found.len(), n - 2);
            }
        }
    }

    #[test]
    fn clusters_are_the_tightest_of_all_divisions() {
        for seed in 0..10 {
            let mut next = noise(seed);
            let points: Vec<Vec<f64>> = (0..8)
                .map(|i| (0..2).map(|dim| f64::from(next()) * 0.1 + f64::from((i + dim) % 3)).collect())
                .collect();
            let labels = k_means(&points, 3);
            let centre = |cluster: usize, dim: usize| {
                mean((0..8).filter(|&i| labels[i] == cluster).map(|i| points[i][dim])).unwrap()
            };
            let total: f64 = (0..8)
                .map(|i| (0..2).map(|dim| (points[i][dim] - centre(labels[i], dim)).powi(2)).sum::<f64>())
                .sum();
            let least = tightest(&points, 3);
            assert!(total <= least * (1.0 + 1e-9) + 1e-12, "seed {seed}: {total} against {least}");
        }
    }

    #[test]
    fn blocks_between_jumps_are_one_cluster() {
        // Three groups, alike within and at right angles to each other.
        let group = |i: usize| i / 4;
        let cosine: Vec<Vec<f64>> = (0..12)
            .map(|i| {
                (0..12)
                    .map(|j| {
                        if i == j {
                            1.0
                        } else if group(i) == group(j) {
                            0.9
                        } else {
                            0.0
                        }
                    })
                    .collect()
            })
            .collect();
        let labels = clusters(&cosine, 3).unwrap();
        for i in 0..12 {
            for j in 0..12 {
                assert_eq!(labels[i] == labels[j], group(i) == group(j), "{i} and {j}");
            }
        }
        // One of each group first, then the ties from the front; the first and the last block last.
        let places = places(&cosine).unwrap();
        let mut order: Vec<usize> = (0..12).collect();
        order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
        assert_eq!(order[order.len() - 2..], [11, 0]);
        assert_eq!(order[..2], [1, 4]);
    }

    #[test]
    fn what_cannot_be_clustered_is_an_error() {
        assert!(places(&vec![vec![1.0; 2]; 2]).is_err());
        assert!(places(&[vec![1.0; 3], vec![1.0; 3], vec![f64::NAN; 3]]).is_err());
        assert!(places(&vec![vec![1.0; 3]; 3]).is_ok());
        assert!(places(&vec![vec![-1.0; 5]; 5]).is_ok());
    }
}
