//! What must hold for any bytes whatever; fuzz targets and tests call it.

use bytes::{Bytes, BytesMut};

use crate::{Frame, Frames, HEADER_LEN, ToClient, ToGateway};

/// Reads a message in both directions and checks what was read.
///
/// # Panics
/// If a frame that was read is not written and read again as the same, if its length is not what it says, or if
/// frames and message differ in length.
pub fn check_message(message: &[u8]) {
    check::<ToClient>(message);
    check::<ToGateway>(message);
}

fn check<F: Frame>(message: &[u8]) {
    let message = Bytes::copy_from_slice(message);
    let mut rest = message.clone();
    while let Ok(Some(frame)) = F::decode(&mut rest) {
        check_round_trip(&frame);
    }
    let Ok(frames) = Frames::<F>::new(message.clone()) else {
        assert!(
            message.is_empty() || message.len() > crate::MAX_MESSAGE,
            "only its length refuses a message"
        );
        return;
    };
    // The iterator sees what the decoder sees, up to the first error.
    let mut rest = message;
    for frame in frames {
        let before = rest.len();
        assert_eq!(F::decode(&mut rest).transpose(), Some(frame.clone()), "read twice, read the same");
        if frame.is_ok() {
            assert!(before - rest.len() >= HEADER_LEN, "each frame takes at least its header");
        } else {
            return;
        }
    }
    assert!(rest.is_empty(), "without an error, the frames are the message");
}

/// Writes a frame and reads it again.
///
/// # Panics
/// If it is not the same then.
pub fn check_round_trip<F: Frame>(frame: &F) {
    let mut encoded = BytesMut::new();
    frame.encode(&mut encoded);
    assert_eq!(encoded.len(), frame.encoded_len(), "length of {frame:?}");
    let mut encoded = encoded.freeze();
    assert_eq!(F::decode(&mut encoded).as_ref(), Ok(&Some(frame.clone())));
    assert!(encoded.is_empty(), "the whole encoding was read");
}
