//! Lists cut into messages for the streaming RPCs.

use std::pin::Pin;

use futures_util::Stream;
use prost::Message;
use tonic::{Response, Status};

/// Encoded bytes that one message should stay below. Far below the limit of a message, so that neither
/// side holds much at a time.
pub(super) const BATCH_BYTES: usize = 2 * 1024 * 1024;

/// An item costs a tag and a length beside its own bytes.
pub(super) const FRAME: usize = 8;

/// A stream of messages, as the services return it.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An answer of messages, each made when the one before it is on its way. None at all is a complete list too.
pub(super) fn messages<T: 'static>(
    messages: impl Iterator<Item = T> + Send + 'static,
) -> Response<Messages<T>> {
    Response::new(Box::pin(futures_util::stream::iter(messages.map(Ok))))
}

/// Puts items together as long as they encode to at most `limit` bytes; a larger item stands alone.
pub(super) fn batches<T: Message>(
    items: impl Iterator<Item = T>,
    limit: usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let first = items.next()?;
        let mut size = first.encoded_len() + FRAME;
        let mut batch = vec![first];
        while let Some(next) = items.next_if(|next| size + next.encoded_len() + FRAME <= limit) {
            size += next.encoded_len() + FRAME;
            batch.push(next);
        }
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_cri_api::v1::PodSandbox;
    use proptest::prelude::*;

    fn pod(length: usize) -> PodSandbox {
        PodSandbox {
            id: "x".repeat(length),
            ..PodSandbox::default()
        }
    }

    proptest! {
        #[test]
        fn batches_keep_order_and_limit(lengths in prop::collection::vec(0..400_usize, 0..60)) {
            let limit = 500;
            let cut: Vec<_> = batches(lengths.iter().map(|n| pod(*n)), limit).collect();
            let flat: Vec<_> = cut.iter().flatten().map(|p| p.id.len()).collect();
            prop_assert_eq!(flat, lengths);
            for batch in &cut {
                let size: usize = batch.iter().map(Message::encoded_len).sum();
                prop_assert!(!batch.is_empty() && (size <= limit || batch.len() == 1));
            }
        }
    }
}
