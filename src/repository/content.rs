//! Reads the content of files of any size object by object, with little memory.

use super::Repository;
use crate::object::{Content, ContentObjects, ObjectKind};
use crate::store::{ContentError, ContentObject};

impl Repository {
    /// Calls `take` with the content of a file of `size` bytes, in parts, in order.
    ///
    /// An object is verified only after its bytes were passed to `take`, so they are valid only if this returns `Ok`.
    pub fn stream_content(
        &self,
        content: &Content,
        size: u64,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), ContentError> {
        let mut take = |bytes: &[u8]| {
            take(bytes);
            Ok(())
        };
        file_objects(content, size)?.into_iter().try_for_each(|object| self.store.stream_content(object, &mut take))
    }
}

/// Returns the objects of a file of `size` bytes in order. Fails if they do not cover the file without gap or overlap.
pub(super) fn file_objects(content: &Content, size: u64) -> Result<Vec<ContentObject>, ContentError> {
    let raw = content.raw;
    let chunks = match &content.objects {
        ContentObjects::Whole(hash) => {
            return Ok(vec![ContentObject { hash: *hash, kind: ObjectKind::File, raw, size }]);
        }
        ContentObjects::Chunks(chunks) => chunks,
        ContentObjects::Unstored { .. } => return Err(ContentError::Hole(0)),
    };
    let (mut pieces, mut at) = (Vec::with_capacity(chunks.len()), 0);
    for chunk in &**chunks {
        // Clients would return other bytes, or an I/O error, for a gap or an overlap.
        if chunk.offset != at {
            return Err(ContentError::Hole(at));
        }
        pieces.push(ContentObject { hash: chunk.hash, kind: ObjectKind::Chunk, raw, size: chunk.size });
        at = at.saturating_add(chunk.size);
    }
    if at == size { Ok(pieces) } else { Err(ContentError::Hole(at.min(size))) }
}
