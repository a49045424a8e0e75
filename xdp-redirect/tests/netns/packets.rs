//! Frames built byte by byte, and a raw socket to send them.

use std::net::{Ipv4Addr, Ipv6Addr};

use xdp_redirect::loader::interface_index;

pub const NODE4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 9);
pub const POD4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 9);
pub const POD6: Ipv6Addr = Ipv6Addr::new(0xfd44, 0, 0, 0, 0, 0, 0, 7);
pub const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Source of every IPv6 packet here.
pub const SOURCE6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
pub const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0xb];
    frame.extend([2, 0, 0, 0, 0, 0xa]);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The same frame to every station of the link.
pub fn broadcast(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].fill(0xff);
    frame
}

/// `fragment` is the flags and offset word.
pub fn ipv4(destination: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("small packets");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 9, 0, 1]);
    packet.extend(destination.octets());
    packet.extend(payload);
    ethernet(0x0800, &packet)
}

pub fn ipv6(destination: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("small packets");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([next_header, 255]);
    packet.extend(SOURCE6.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

/// Source port 1000 and zeros behind: TCP or UDP, as far as it matters here.
pub fn l4(destination_port: u16) -> Vec<u8> {
    let mut header = 1000u16.to_be_bytes().to_vec();
    header.extend(destination_port.to_be_bytes());
    header.resize(20, 0);
    header
}

pub fn icmp(kind: u8, identifier: u16) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.resize(40, 0);
    message
}

/// Sends a frame out of `device` in the calling thread's namespace.
pub fn inject(device: &str, frame: &[u8]) {
    let ifindex = interface_index(device).expect("the device exists");
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert!(fd >= 0, "AF_PACKET: {}", std::io::Error::last_os_error());
    // SAFETY: an all-zero `sockaddr_ll` is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
    address.sll_ifindex = i32::try_from(ifindex).expect("a small number");
    address.sll_halen = 6;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("small");
    // SAFETY: frame and address live through the call and have the lengths that are passed.
    let sent = unsafe {
        libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const address).cast(), length)
    };
    let error = std::io::Error::last_os_error();
    // SAFETY: opened above, closed once.
    unsafe { libc::close(fd) };
    assert_eq!(usize::try_from(sent).ok(), Some(frame.len()), "send: {error}");
}
