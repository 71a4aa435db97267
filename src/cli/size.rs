//! Sizes as options take them and tables show them.

pub(super) use crate::base::size::{Size, human};
