//! Raw sockets that see what arrives.

/// Reads what arrives at a device, raw.
pub struct PacketSocket(std::os::fd::OwnedFd);

pub fn packet_socket(device: &str) -> PacketSocket {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let all = i32::from(3u16.to_be());
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, all) };
    assert!(fd >= 0, "AF_PACKET: {}", std::io::Error::last_os_error());
    // SAFETY: just opened, owned by nobody else.
    let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
    let ifindex = xdp_redirect::loader::interface_index(device).expect("the device exists");
    // SAFETY: an all-zero `sockaddr_ll` is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
    address.sll_protocol = 3u16.to_be();
    address.sll_ifindex = i32::try_from(ifindex).expect("a small number");
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("small");
    // SAFETY: the address lives through the call and has the length that is passed.
    let bound = unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "bind: {}", std::io::Error::last_os_error());
    let limit = libc::timeval { tv_sec: 5, tv_usec: 0 };
    let length = libc::socklen_t::try_from(size_of::<libc::timeval>()).expect("small");
    // SAFETY: the limit lives through the call and has the length that is passed.
    unsafe {
        libc::setsockopt(
            socket.0.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const limit).cast(),
            length,
        )
    };
    socket
}

impl PacketSocket {
    /// Has room for so many bytes that wait.
    pub fn set_receive_buffer(&self, bytes: i32) {
        use std::os::fd::AsRawFd;
        let length = libc::socklen_t::try_from(size_of::<i32>()).expect("small");
        // SAFETY: the number lives through the call and has the length that is passed.
        let result = unsafe {
            let value = (&raw const bytes).cast();
            let fd = self.0.as_raw_fd();
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length)
        };
        assert_eq!(result, 0, "SO_RCVBUFFORCE: {}", std::io::Error::last_os_error());
    }

    /// `None` when nothing comes for five seconds.
    pub fn receive_within(&self, into: &mut [u8]) -> Option<usize> {
        use std::os::fd::AsRawFd;
        // SAFETY: pointer and length are those of a live buffer.
        let received =
            unsafe { libc::recv(self.0.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
        usize::try_from(received).ok()
    }

    pub fn receive(&self, into: &mut [u8]) -> usize {
        use std::os::fd::AsRawFd;
        // SAFETY: pointer and length are those of a live buffer.
        let received =
            unsafe { libc::recv(self.0.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
        usize::try_from(received).expect("a packet arrives within five seconds")
    }
}
