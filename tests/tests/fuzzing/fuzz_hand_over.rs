//! What one process tells the next of its sockets and packet memory.

use xdp_redirect::hand_over::message::{
    AnchorRecord, HEADER_BYTES, Message, RegionRecord, Role, SocketRecord, with_header,
};

use crate::{Damage, damaged};

fn honest() -> Message {
    let region = RegionRecord {
        number: 0,
        frames: 64,
        chunk_bytes: 2048,
        fill_ring: 64,
        completion_ring: 64,
        multi_buffer: false,
        huge_pages: true,
        anchor: AnchorRecord::Tap,
        holders: vec![2; 64],
    };
    let role = Role::Receives { receive_ring: 64, posted: 1, wanted: 64, discarding: false };
    let first =
        SocketRecord { ifindex: 5, queue: 0, region: 0, number: 2, transmit_ring: 64, role };
    let second = SocketRecord { role: Role::Transmits { worker: 1 }, ..first };
    Message { workers: 2, regions: vec![region], sockets: vec![first, second] }
}

/// Whatever is read is written the same again.
fn read(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        assert_eq!(message.encode(), bytes);
        assert!(message.descriptors() >= message.sockets.len());
    }
}

#[test]
fn damaged_messages_are_read_or_refused() {
    let bytes = honest().encode();
    assert_eq!(Message::parse(&bytes), Ok(honest()));
    bolero::check!().with_type::<Damage>().for_each(|damage| read(&damaged(&bytes, damage)));
}

/// Damage that the checksum does not tell of, as another program would write it.
#[test]
fn messages_of_any_content_are_read_or_refused() {
    let honest = honest().encode();
    bolero::check!().with_type::<Damage>().for_each(|damage| {
        read(&with_header(&damaged(&honest[HEADER_BYTES..], damage)));
    });
}

#[test]
fn any_bytes_are_a_message_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| read(bytes));
}
