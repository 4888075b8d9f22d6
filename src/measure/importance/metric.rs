//! The metrics: what is measured of every token that a block changes.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use super::rows::Products;

/// A score of a block: a mean over tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Block Influence, 0 (changes nothing) to 2.
    BlockInfluence,
    /// Relative Magnitude, 0 (changes nothing) upwards.
    RelativeMagnitude,
}

impl Metric {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::BlockInfluence, Self::RelativeMagnitude];

    /// What results call it.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::BlockInfluence => "bi",
            Self::RelativeMagnitude => "relative_magnitude",
        }
    }

    /// What a table calls it.
    #[must_use]
    pub fn head(self) -> &'static str {
        match self {
            Self::BlockInfluence => "influence",
            Self::RelativeMagnitude => "rel. magnitude",
        }
    }

    /// That of a token.
    pub(super) fn of(self, products: &Products) -> f64 {
        match self {
            Self::BlockInfluence => products.cosine_distance(),
            Self::RelativeMagnitude => (products.dd / products.yy).sqrt(),
        }
    }
}

/// A value for each metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Each<T>([T; Metric::ALL.len()]);

impl<T> Each<T> {
    /// What `of` gives.
    pub fn new(of: impl FnMut(Metric) -> T) -> Self {
        Self(Metric::ALL.map(of))
    }
}

impl<T> Index<Metric> for Each<T> {
    type Output = T;

    fn index(&self, metric: Metric) -> &T {
        &self.0[metric as usize]
    }
}

impl<T> IndexMut<Metric> for Each<T> {
    fn index_mut(&mut self, metric: Metric) -> &mut T {
        &mut self.0[metric as usize]
    }
}
