//! Commands about services.

use std::net::IpAddr;

use clap::{Subcommand, ValueEnum};
use control::admin::Request;
use control::admin::service::ServiceTraceQuestion;

/// Of `service`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services with frontends and backends.
    List,
    /// Show one service: its policies, health check and ports, and every endpoint with its state,
    /// whether it is used, and its connections.
    #[command(after_help = "Example:\n  xskiff service show shop/web")]
    Show {
        /// Its namespace and name.
        #[arg(value_name = "NAMESPACE/NAME")]
        name: String,
    },
    /// Say which backend a new connection would get, and why: frontend, policy, set of backends and
    /// slot. Nothing is sent, and no flow is looked at.
    #[command(
        after_help = "A connection that there is stays where it is: `xskiff ct list` tells. \
        Examples:\n  xskiff service trace --from 10.1.0.5 --to 10.96.0.10 --port 53 --proto udp \
        --source-port 40000\n  xskiff service trace --from 192.0.2.7 --to 203.0.113.80 --port 443"
    )]
    Trace {
        /// Who speaks: a pod here, the node itself, or anybody outside.
        #[arg(long, value_name = "IP")]
        from: IpAddr,
        /// The service's address, or the node's for a node port.
        #[arg(long, value_name = "IP")]
        to: IpAddr,
        /// The service port, or the node port.
        #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        l4_port: u16,
        /// The protocol.
        #[arg(long = "proto", value_enum, default_value_t = ProtocolArg::Tcp)]
        protocol: ProtocolArg,
        /// The port it speaks from, which the choice depends on.
        #[arg(long, value_name = "PORT")]
        source_port: Option<u16>,
    },
}

/// A protocol that services have.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ProtocolArg {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl From<ServiceCommand> for Request {
    fn from(command: ServiceCommand) -> Self {
        match command {
            ServiceCommand::List => Self::ServiceList,
            ServiceCommand::Show { name } => Self::ServiceShow { name },
            ServiceCommand::Trace { from, to, l4_port, protocol, source_port } => {
                let protocol = match protocol {
                    ProtocolArg::Tcp => "tcp",
                    ProtocolArg::Udp => "udp",
                    ProtocolArg::Sctp => "sctp",
                };
                let protocol = protocol.to_owned();
                Self::ServiceTrace(ServiceTraceQuestion {
                    from,
                    source_port,
                    to,
                    l4_port,
                    protocol,
                })
            }
        }
    }
}
