//! Images, version 2.

use serde::{Deserialize, Serialize};

use crate::record::v1::Image;

/// The copy of a row of the image index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageCopy {
    /// When it was written, nanoseconds since the Unix epoch.
    pub(crate) written_at: u64,
    /// The row.
    pub(crate) image: Box<Image>,
}
