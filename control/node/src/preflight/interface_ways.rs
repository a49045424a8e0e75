//! By which ways packets would leave an interface, in the words of `xskiff status`: what its link and its
//! other end let be seen, or a trial on the interface itself where that is asked for.

use anyhow::bail;
use control::config::Transmit;
use dataplane::port::PortId;
use xdp_redirect::LiveTransmit;
use xdp_redirect::ethtool::{Offload, offload};
use xdp_redirect::live_transmit::LivePeer;
use xdp_redirect::loader::interface_index;
use xdp_redirect::umem::UmemConfig;

use super::finding::Finding;
use super::ways::{LIVE_FRAMES, WHOLE_SEGMENTS};
use crate::live_ways::{Way, Why, mtu_within, refusal, unfit_link};
use crate::netlink::Link;
use crate::netlink::pod_ends::{FarEnd, FarPlace, far_end};
use crate::pod_netns;

/// Linux (6.18) lets the near end take redirected frames when GRO is turned on at a far end that is up, and
/// not when that comes up with it.
const UNTOLD: &str = "frames vanish, though GRO is on at the other end";

/// Checks what other ways than AF_XDP an interface has; with `attach` by sending frames of a type that
/// no stack knows.
#[must_use]
pub fn check(name: &str, link: &Link, queues: u32, attach: bool) -> Vec<Finding> {
    let live = format!("{LIVE_FRAMES} {name}");
    if link.virtual_kind.as_deref() != Some("veth") {
        let found = Way::AfXdp(Why::NotVeth).to_string();
        return vec![Finding::skipped(&live, found, "")];
    }
    let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    let unfit = unfit_link(Transmit::Auto, UmemConfig::default().chunk_bytes, queues, mtu);
    let seen = match unfit {
        Some(why) => Ok(Way::AfXdp(why)),
        None if attach => Ok(tried(name)),
        None => seen(name),
    };
    let whole = format!("{WHOLE_SEGMENTS} {name}");
    let found = format!("cut for an uplink, to its MTU of {mtu}; a pod's link takes them whole");
    vec![of_live_frames(&live, name, seen), Finding::pass(&whole, found)]
}

fn of_live_frames(check: &str, name: &str, way: anyhow::Result<Way>) -> Finding {
    let way = match way {
        Ok(way) => way,
        Err(error) => {
            let found = format!("its other end cannot be seen: {error}");
            return Finding::skipped(check, found, "`--attach` tries it, as a node will");
        }
    };
    let found = way.to_string();
    let remedy = match way {
        Way::LiveFrames(peer) => {
            let taker = match peer {
                LivePeer::Program => "program",
                LivePeer::Stack => "stack, with GRO on,",
            };
            return Finding::pass(check, format!("{found}: the other end's {taker} takes them"));
        }
        Way::AfXdp(Why::Queues(_)) => format!(
            "where one worker is enough for it, `ethtool -L {name} combined 1`; or `transmit: live-frames`, \
             with which packets of a flow may overtake each other"
        ),
        Way::AfXdp(Why::Mtu(_)) => {
            let most = mtu_within(UmemConfig::default().chunk_bytes);
            format!("lower it to {most} or less where many small packets matter more")
        }
        Way::AfXdp(Why::Vanishes) => {
            "`ethtool -K INTERFACE gro on` there; an ADD does so for a pod".to_owned()
        }
        Way::AfXdp(Why::Kernel(why)) if why == UNTOLD => {
            "turn it off and on there: it was on before the link was up".to_owned()
        }
        Way::AfXdp(_) => String::new(),
    };
    Finding::warn(check, found, remedy)
}

/// What the other end's program and offload tell.
fn seen(name: &str) -> anyhow::Result<Way> {
    let FarEnd { interface, runs_program, place } = far_end(interface_index(name)?)?;
    if runs_program {
        return Ok(Way::LiveFrames(LivePeer::Program));
    }
    let polls = match place {
        FarPlace::Here => offload(&interface, Offload::GenericReceive)?,
        FarPlace::Named(path) => pod_netns::offload_of(&path, &interface, Offload::GenericReceive)?,
        FarPlace::Unnamed => bail!("its network namespace has no name"),
    };
    Ok(if polls { Way::LiveFrames(LivePeer::Stack) } else { Way::AfXdp(Why::Vanishes) })
}

/// What becomes of a few frames.
fn tried(name: &str) -> Way {
    let port = PortId(0);
    let trial = interface_index(name).and_then(|index| {
        let mut live = LiveTransmit::load(1)?;
        live.set_port(port, index)?;
        live.try_port(port, name)
    });
    match trial.map(refusal) {
        Ok(None) => match seen(name) {
            Ok(way @ Way::LiveFrames(_)) => way,
            // One that cannot be seen counts as a stack, as for a node.
            _ => Way::LiveFrames(LivePeer::Stack),
        },
        Ok(Some(Why::Vanishes)) if matches!(seen(name), Ok(Way::LiveFrames(_))) => {
            Way::AfXdp(Why::Kernel(UNTOLD.into()))
        }
        Ok(Some(why)) => Way::AfXdp(why),
        Err(error) => Way::AfXdp(Why::Kernel(error.to_string())),
    }
}
