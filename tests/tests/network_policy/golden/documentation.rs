//! The examples of the Kubernetes documentation: the concept page "Network Policies" and the task page
//! "Declare Network Policy".

use super::{check, policy};

const CLUSTER: &str = "
    namespace default
    namespace myproject project=myproject
    namespace other
    default/db          one  role=db
    default/frontend    one  role=frontend
    default/distant     two  role=frontend
    default/plain       one
    myproject/any       two
    other/frontend      one  role=frontend
    other/plain         two
";

/// The page's first example: three kinds of peers toward databases, one block from them.
#[test]
fn database_is_reached_by_three_kinds_of_peers_and_reaches_one_block() {
    let spec = "
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {project: myproject}}
    - podSelector: {matchLabels: {role: frontend}}
    ports:
    - {protocol: TCP, port: 6379}
  egress:
  - to:
    - ipBlock: {cidr: 10.0.0.0/24}
    ports:
    - {protocol: TCP, port: 5978}";
    check(
        CLUSTER,
        &policy("default", "test-network-policy", spec),
        "
        default/frontend   default/db       TCP/6379   passes
        default/distant    default/db       TCP/6379   passes
        default/frontend   default/db       TCP/6380   ingress
        default/frontend   default/db       UDP/6379   ingress
        default/frontend   default/db       ICMP       ingress
        default/plain      default/db       TCP/6379   ingress
        myproject/any      default/db       TCP/6379   passes
        myproject/any      default/db       TCP/80     ingress
        other/frontend     default/db       TCP/6379   ingress
        172.17.0.1         10.1.0.4         TCP/6379   passes
        172.17.0.255       10.1.0.4         TCP/6379   passes
        172.17.1.0         10.1.0.4         TCP/6379   ingress
        172.17.1.255       10.1.0.4         TCP/6379   ingress
        172.17.2.0         10.1.0.4         TCP/6379   passes
        172.17.255.255     10.1.0.4         TCP/6379   passes
        172.18.0.0         10.1.0.4         TCP/6379   ingress
        172.17.0.1         10.1.0.4         TCP/443    ingress
        2001:db8::1        fd01::4          TCP/6379   ingress
        one                default/db       TCP/22     passes
        two                default/db       TCP/6379   ingress
        10.1.0.4           10.0.0.2         TCP/5978   passes
        10.1.0.4           10.0.0.1         TCP/5978   passes
        10.1.0.4           10.0.0.200       TCP/5978   passes
        10.1.0.4           10.0.0.200       TCP/5979   egress
        10.1.0.4           10.0.1.0         TCP/5978   egress
        default/db         default/plain    TCP/5978   egress
        default/plain      default/frontend TCP/1      passes
        default/plain      192.0.2.1        TCP/443    passes
        ",
    );
}

const ALICE: &str = "
    namespace default
    namespace alice   user=alice
    namespace bob     user=bob
    default/server  one  app=server
    default/client  one  role=client
    default/plain   one
    alice/client    one  role=client
    alice/plain     two
    bob/client      two  role=client
";

#[test]
fn both_selectors_in_one_peer_must_match() {
    let spec = "
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {user: alice}}
      podSelector: {matchLabels: {role: client}}";
    check(
        ALICE,
        &policy("default", "and", spec),
        "
        alice/client    default/server  TCP/80  passes
        alice/plain     default/server  TCP/80  ingress
        default/client  default/server  TCP/80  ingress
        bob/client      default/server  TCP/80  ingress
        default/server  alice/plain     TCP/80  passes
        ",
    );
}

#[test]
fn selectors_in_two_peers_are_alternatives() {
    let spec = "
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {user: alice}}
    - podSelector: {matchLabels: {role: client}}";
    check(
        ALICE,
        &policy("default", "or", spec),
        "
        alice/client    default/server  TCP/80  passes
        alice/plain     default/server  TCP/80  passes
        default/client  default/server  TCP/80  passes
        default/plain   default/server  TCP/80  ingress
        bob/client      default/server  TCP/80  ingress
        ",
    );
}

const TWO: &str = "
    namespace default
    namespace other
    default/a  one  app=a
    default/b  two  app=b
    other/c    one
";

#[test]
fn default_deny_of_ingress_leaves_egress_alone() {
    check(
        TWO,
        &policy("default", "deny", "  podSelector: {}\n  policyTypes: [Ingress]"),
        "
        default/b   default/a   TCP/80  ingress
        default/b   default/a   ICMP    ingress
        other/c     default/a   TCP/80  ingress
        192.0.2.1   10.1.0.3    TCP/80  ingress
        default/a   other/c     TCP/80  passes
        default/a   192.0.2.1   TCP/80  passes
        one         default/a   TCP/80  passes
        default/a   default/a   TCP/80  passes
        ",
    );
}

const DENY_ALL: &str = "  podSelector: {}\n  policyTypes: [Ingress, Egress]";

#[test]
fn allowing_all_ingress_outweighs_any_other_policy() {
    let deny = policy("default", "deny", "  podSelector: {}\n  policyTypes: [Ingress]");
    let allow = "  podSelector: {}\n  ingress: [{}]\n  policyTypes: [Ingress]";
    check(
        TWO,
        &(deny + &policy("default", "allow", allow)),
        "
        default/b   default/a   TCP/80   passes
        other/c     default/a   SCTP/80  passes
        192.0.2.1   10.1.0.3    UDP/80   passes
        2001:db8::1 fd01::3     ICMP     passes
        ",
    );
}

#[test]
fn default_deny_of_egress_leaves_ingress_alone() {
    check(
        TWO,
        &policy("default", "deny", "  podSelector: {}\n  policyTypes: [Egress]"),
        "
        default/a   default/b   TCP/80  egress
        default/a   other/c     TCP/80  egress
        default/a   192.0.2.1   UDP/53  egress
        default/a   two         TCP/80  egress
        other/c     default/a   TCP/80  passes
        192.0.2.1   10.1.0.3    TCP/80  passes
        default/a   default/a   TCP/80  passes
        ",
    );
}

#[test]
fn allowing_all_egress_outweighs_any_other_policy() {
    let deny = policy("default", "deny", "  podSelector: {}\n  policyTypes: [Egress]");
    let allow = "  podSelector: {}\n  egress: [{}]\n  policyTypes: [Egress]";
    check(
        TWO,
        &(deny + &policy("default", "allow", allow)),
        "
        default/a   default/b   TCP/80  passes
        default/a   192.0.2.1   UDP/53  passes
        default/a   one         ICMP    passes
        ",
    );
}

#[test]
fn default_deny_of_both_closes_the_namespace() {
    check(
        TWO,
        &policy("default", "deny", DENY_ALL),
        "
        default/a   default/b   TCP/80  egress
        default/a   192.0.2.1   UDP/53  egress
        other/c     default/a   TCP/80  ingress
        192.0.2.1   10.1.0.3    TCP/80  ingress
        other/c     192.0.2.1   TCP/80  passes
        ",
    );
}

/// The page on SCTP: a protocol like the other two.
#[test]
fn sctp_is_told_from_tcp() {
    let spec = "
  podSelector: {matchLabels: {app: a}}
  ingress:
  - ports: [{protocol: SCTP, port: 7777}]";
    check(
        TWO,
        &policy("default", "sctp", spec),
        "
        default/b   default/a   SCTP/7777  passes
        default/b   default/a   SCTP/7778  ingress
        default/b   default/a   TCP/7777   ingress
        ",
    );
}

#[test]
fn range_of_ports_ends_with_its_end_port() {
    let spec = "
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: {cidr: 10.0.0.0/24}
    ports:
    - {protocol: TCP, port: 32000, endPort: 32768}";
    check(
        CLUSTER,
        &policy("default", "multi-port-egress", spec),
        "
        10.1.0.4    10.0.0.9   TCP/31999  egress
        10.1.0.4    10.0.0.9   TCP/32000  passes
        10.1.0.4    10.0.0.9   TCP/32768  passes
        10.1.0.4    10.0.0.9   TCP/32769  egress
        10.1.0.4    10.0.0.9   UDP/32000  egress
        10.1.0.4    10.0.1.9   TCP/32000  egress
        ",
    );
}

#[test]
fn several_namespaces_are_chosen_by_an_expression() {
    let spec = "
  podSelector: {matchLabels: {app: myapp}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector:
        matchExpressions:
        - {key: namespace, operator: In, values: [frontend, backend]}";
    check(
        "
        namespace default
        namespace front   namespace=frontend
        namespace back    namespace=backend
        namespace frontend
        default/app   one  app=myapp
        front/a       one
        back/b        two
        frontend/c    one
        ",
        &policy("default", "egress-namespaces", spec),
        "
        default/app   front/a      TCP/80  passes
        default/app   back/b       ICMP    passes
        default/app   frontend/c   TCP/80  egress
        default/app   192.0.2.1    TCP/80  egress
        ",
    );
}

#[test]
fn namespace_is_chosen_by_its_name() {
    let spec = "
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}";
    check(
        TWO,
        &policy("default", "by-name", spec),
        "
        other/c    default/a   TCP/80  passes
        default/b  default/a   TCP/80  ingress
        ",
    );
}

/// The task page: whoever carries a label may reach the web server.
#[test]
fn web_server_is_reached_with_a_label() {
    let spec = "
  podSelector: {matchLabels: {app: nginx}}
  ingress:
  - from:
    - podSelector: {matchLabels: {access: \"true\"}}";
    check(
        "
        namespace default
        namespace other
        default/nginx    one  app=nginx
        default/granted  two  access=true
        default/refused  one  access=false
        other/granted    one  access=true
        ",
        &policy("default", "access-nginx", spec),
        "
        default/granted  default/nginx    TCP/80  passes
        default/refused  default/nginx    TCP/80  ingress
        other/granted    default/nginx    TCP/80  ingress
        default/nginx    default/refused  TCP/80  passes
        ",
    );
}
