//! Commands about identities and policies.

use clap::Subcommand;
use clap::builder::RangedI64ValueParser;
use control::admin::policy::{
    IdentityPage, IdentityQuestion, PolicyPage, PolicyStatusQuestion, ROWS_MAX,
};
use control::admin::{PolicyQuestion, Request};

/// Rows of a page, as long as the node gives.
fn rows() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(ROWS_MAX))
}

/// Of `identity`.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// List identities with their addresses and the selectors that make them.
    #[command(
        after_help = "A cluster may have very many: the last line says how many were left out \
        and how to go on. Examples:\n  xskiff identity list\n  xskiff identity list --limit 1000 \
        --after 355 --json"
    )]
    List {
        /// At most so many.
        #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = rows())]
        limit: u32,
        /// Only those with a greater number.
        #[arg(long, value_name = "NUMBER")]
        after: Option<u32>,
    },
    /// Say what one identity is: its selectors, which policies use them, and who has it.
    #[command(
        after_help = "Examples:\n  xskiff identity get 257\n  xskiff identity get 10.1.0.5\n  \
        xskiff identity get shop/cart-0"
    )]
    Get {
        /// A number, an address, or a pod.
        #[arg(value_name = "NUMBER or ADDRESS or NAMESPACE/POD")]
        what: String,
        /// Examples and selectors shown, at most so many of each.
        #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = rows())]
        limit: u32,
    },
}

impl From<IdentityCommand> for Request {
    fn from(command: IdentityCommand) -> Self {
        match command {
            IdentityCommand::List { limit, after } => {
                Self::IdentityList(IdentityPage { limit, after })
            }
            IdentityCommand::Get { what, limit } => {
                Self::IdentityGet(IdentityQuestion { what, limit })
            }
        }
    }
}

/// Of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// List NetworkPolicies: whom they select, in which directions, and what is wrong with them.
    #[command(
        after_help = "A cluster may have very many: the last line says how many were left out \
        and how to go on. Example:\n  xskiff policy list --namespace shop"
    )]
    List {
        /// Only those of this namespace.
        #[arg(long, short, value_name = "NAMESPACE")]
        namespace: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = rows())]
        limit: u32,
        /// Only those that come after this one.
        #[arg(long, value_name = "NAMESPACE/NAME")]
        after: Option<String>,
    },
    /// How policy stands: a verdict and the next step; with a name, that policy in detail.
    #[command(after_help = "Examples:\n  xskiff policy status\n  xskiff policy status \
        shop/web-customers")]
    Status {
        /// The policy: whom it isolates here, and its rules as they were read.
        #[arg(value_name = "NAMESPACE/NAME", conflicts_with = "namespace")]
        name: Option<String>,
        /// Only policies of this namespace.
        #[arg(long, short, value_name = "NAMESPACE")]
        namespace: Option<String>,
        /// Rules, pods and problems shown, at most so many of each.
        #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = rows())]
        limit: u32,
    },
    /// Say which rule decides for FROM, TO and port, in each direction, and list every rule that
    /// was looked at.
    #[command(after_help = "FROM and TO are each a pod (namespace/pod), an address, an identity \
        (identity:NUMBER, see `xskiff identity list`), `host` or `world`. For pods of other nodes \
        the answer is read off the objects, since their own nodes enforce it.\n\nExample:\n  \
        xskiff policy explain --from shop/cart-0 --to shop/db-0 --port 5432 --proto tcp")]
    Explain {
        /// `namespace/pod`, an address, `identity:NUMBER`, `host` or `world`.
        #[arg(long)]
        from: String,
        /// `namespace/pod`, an address, `identity:NUMBER`, `host` or `world`.
        #[arg(long)]
        to: String,
        /// Destination port, as the backend sees it.
        #[arg(long = "port", value_name = "PORT")]
        l4_port: u16,
        /// tcp, udp, sctp or a number.
        #[arg(long = "proto", value_name = "PROTOCOL", default_value = "tcp")]
        protocol: String,
    },
}

impl From<PolicyCommand> for Request {
    fn from(command: PolicyCommand) -> Self {
        match command {
            PolicyCommand::List { namespace, limit, after } => {
                Self::PolicyList(PolicyPage { namespace, limit, after })
            }
            PolicyCommand::Status { name, namespace, limit } => {
                Self::PolicyStatus(PolicyStatusQuestion { name, namespace, limit })
            }
            PolicyCommand::Explain { from, to, l4_port, protocol } => {
                Self::PolicyExplain(PolicyQuestion { from, to, l4_port, protocol })
            }
        }
    }
}
