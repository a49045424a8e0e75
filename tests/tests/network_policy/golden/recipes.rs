//! The well-known recipes for NetworkPolicy, by their numbers.

use super::{check, policy};

const CLUSTER: &str = "
    namespace default
    namespace prod   purpose=production
    namespace dev    purpose=testing team=operations
    default/web      one  app=web
    default/api      two  app=bookstore role=api
    default/search   one  app=bookstore role=search
    default/db       one  app=bookstore role=db
    default/stock    two  app=inventory role=web
    default/foo      one  app=foo
    default/plain    two
    prod/any         one
    dev/any          two
    dev/monitor      one  type=monitoring
    default/monitor  one  role=monitoring
";

/// 01.
#[test]
fn nobody_reaches_an_application() {
    check(
        CLUSTER,
        &policy(
            "default",
            "web-deny-all",
            "  podSelector: {matchLabels: {app: web}}\n  ingress: []",
        ),
        "
        default/plain  default/web    TCP/80  ingress
        prod/any       default/web    TCP/80  ingress
        192.0.2.1      10.1.0.4       TCP/80  ingress
        default/plain  default/foo    TCP/80  passes
        default/web    192.0.2.1      TCP/80  passes
        ",
    );
}

/// 02.
#[test]
fn one_application_reaches_another() {
    let spec = "
  podSelector: {matchLabels: {app: bookstore, role: api}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: bookstore}}}]";
    check(
        CLUSTER,
        &policy("default", "api-allow", spec),
        "
        default/search  default/api  TCP/80  passes
        default/plain   default/api  TCP/80  ingress
        default/plain   default/db   TCP/80  passes
        ",
    );
}

/// 02a, beside the policy it outweighs.
#[test]
fn everybody_reaches_an_application_again() {
    let deny = policy("default", "default-deny-all", "  podSelector: {}\n  ingress: []");
    let allow = "  podSelector: {matchLabels: {app: web}}\n  ingress: [{}]";
    check(
        CLUSTER,
        &(deny + &policy("default", "web-allow-all", allow)),
        "
        default/plain  default/web  TCP/80  passes
        dev/any        default/web  TCP/80  passes
        192.0.2.1      10.1.0.4     TCP/80  passes
        default/plain  default/foo  TCP/80  ingress
        ",
    );
}

/// 03.
#[test]
fn namespace_is_closed_but_for_what_is_listed() {
    check(
        CLUSTER,
        &policy("default", "default-deny-all", "  podSelector: {}\n  ingress: []"),
        "
        default/plain  default/web  TCP/80  ingress
        default/web    prod/any     TCP/80  passes
        prod/any       dev/any      TCP/80  passes
        ",
    );
}

/// 04.
#[test]
fn other_namespaces_are_kept_out() {
    let spec = "  podSelector: {matchLabels: }\n  ingress:\n  - from: [{podSelector: {}}]";
    check(
        CLUSTER,
        &policy("default", "deny-from-other-namespaces", spec),
        "
        default/plain  default/web  TCP/80  passes
        dev/any        default/web  TCP/80  ingress
        192.0.2.1      10.1.0.4     TCP/80  ingress
        ",
    );
}

/// 05.
#[test]
fn pods_of_all_namespaces_and_nobody_else() {
    let spec = "
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{namespaceSelector: {}}]";
    check(
        CLUSTER,
        &policy("default", "web-allow-all-namespaces", spec),
        "
        default/plain  default/web  TCP/80  passes
        dev/any        default/web  TCP/80  passes
        192.0.2.1      10.1.0.4     TCP/80  ingress
        two            default/web  TCP/80  ingress
        one            default/web  TCP/80  passes
        ",
    );
}

/// 06.
#[test]
fn pods_of_a_namespace() {
    let spec = "
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {purpose: production}}}]";
    check(
        CLUSTER,
        &policy("default", "web-allow-prod", spec),
        "
        prod/any       default/web  TCP/80  passes
        dev/any        default/web  TCP/80  ingress
        default/plain  default/web  TCP/80  ingress
        ",
    );
}

/// 07.
#[test]
fn some_pods_of_another_namespace() {
    let spec = "
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {team: operations}}
      podSelector: {matchLabels: {type: monitoring}}";
    check(
        CLUSTER,
        &policy("default", "web-allow-all-ns-monitoring", spec),
        "
        dev/monitor      default/web  TCP/80  passes
        dev/any          default/web  TCP/80  ingress
        default/monitor  default/web  TCP/80  ingress
        ",
    );
}

/// 08, both forms: an empty list of peers is everybody, and a port narrows it.
#[test]
fn the_outside_reaches_an_application() {
    let all = "  podSelector: {matchLabels: {app: web}}\n  ingress:\n  - from: []";
    check(
        CLUSTER,
        &policy("default", "web-allow-external", all),
        "
        192.0.2.1    10.1.0.4     TCP/443  passes
        2001:db8::1  fd01::4      UDP/80   passes
        dev/any      default/web  TCP/80   passes
        ",
    );
    let port = format!("{all}\n    ports: [{{port: 80}}]");
    check(
        CLUSTER,
        &policy("default", "web-allow-external", &port),
        "
        192.0.2.1    10.1.0.4     TCP/80   passes
        192.0.2.1    10.1.0.4     TCP/443  ingress
        192.0.2.1    10.1.0.4     UDP/80   ingress
        ",
    );
}

/// 09.
#[test]
fn one_port_of_an_application() {
    let spec = "
  podSelector: {matchLabels: {app: web}}
  ingress:
  - ports: [{port: 5000}]
    from: [{podSelector: {matchLabels: {role: monitoring}}}]";
    check(
        CLUSTER,
        &policy("default", "api-allow-5000", spec),
        "
        default/monitor  default/web  TCP/5000  passes
        default/monitor  default/web  TCP/8000  ingress
        default/plain    default/web  TCP/5000  ingress
        ",
    );
}

/// 10.
#[test]
fn several_applications_reach_a_database() {
    let spec = "
  podSelector: {matchLabels: {app: bookstore, role: db}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: bookstore, role: search}}
    - podSelector: {matchLabels: {app: bookstore, role: api}}
    - podSelector: {matchLabels: {app: inventory, role: web}}";
    check(
        CLUSTER,
        &policy("default", "redis-allow-services", spec),
        "
        default/search  default/db  TCP/6379  passes
        default/api     default/db  TCP/6379  passes
        default/stock   default/db  TCP/6379  passes
        default/web     default/db  TCP/6379  ingress
        ",
    );
}

/// 11, both forms: nothing, and nothing but name resolution.
#[test]
fn an_application_speaks_to_nobody() {
    let none = "  podSelector: {matchLabels: {app: foo}}\n  policyTypes: [Egress]\n  egress: ";
    check(
        CLUSTER,
        &policy("default", "foo-deny-egress", &format!("{none}[]")),
        "
        default/foo    default/web  TCP/80  egress
        default/foo    192.0.2.1    UDP/53  egress
        default/plain  default/foo  TCP/80  passes
        ",
    );
    let names = "[{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]";
    check(
        CLUSTER,
        &policy("default", "foo-deny-egress", &format!("{none}{names}")),
        "
        default/foo    192.0.2.1    UDP/53   passes
        default/foo    192.0.2.1    TCP/53   passes
        default/foo    192.0.2.1    SCTP/53  egress
        default/foo    default/web  TCP/80   egress
        ",
    );
}

/// 12.
#[test]
fn namespace_speaks_to_nobody() {
    let spec = "  podSelector: {}\n  policyTypes: [Egress]\n  egress: []";
    check(
        CLUSTER,
        &policy("default", "default-deny-all-egress", spec),
        "
        default/foo  default/web  TCP/80  egress
        default/web  192.0.2.1    TCP/80  egress
        prod/any     default/web  TCP/80  passes
        ",
    );
}

/// 14.
#[test]
fn an_application_stays_within_the_cluster() {
    let spec = "
  podSelector: {matchLabels: {app: foo}}
  policyTypes: [Egress]
  egress:
  - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
  - to: [{namespaceSelector: {}}]";
    check(
        CLUSTER,
        &policy("default", "foo-deny-external-egress", spec),
        "
        default/foo  default/web  TCP/80  passes
        default/foo  prod/any     ICMP    passes
        default/foo  192.0.2.1    UDP/53  passes
        default/foo  192.0.2.1    TCP/80  egress
        default/foo  two          TCP/80  egress
        ",
    );
}
