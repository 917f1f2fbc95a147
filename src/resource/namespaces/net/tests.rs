use super::*;
use crate::sys::ns::{fresh_with, inside};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;

/// A new namespace in which a shell script has run.
fn prepared(script: &str) -> OwnedFd {
    fresh_with(Kind::Net, || {
        let output = Command::new("sh").args(["-ec", script]).output()?;
        assert!(output.status.success(), "{output:?}");
        Ok(())
    })
    .unwrap()
}

fn captured(namespace: &OwnedFd) -> Net {
    let mut refusals = Refusals::new();
    let net = capture(namespace.as_fd(), false, &mut refusals).unwrap();
    assert_eq!(refusals.as_slice(), []);
    net
}

fn codes(script: &str) -> Vec<&'static str> {
    let mut refusals = Refusals::new();
    capture(prepared(script).as_fd(), false, &mut refusals).unwrap();
    refusals
        .as_slice()
        .iter()
        .map(|refusal| refusal.code)
        .collect()
}

/// Sets up, captures, rebuilds in a new namespace, captures again.
fn comes_back(script: &str) -> (OwnedFd, Net) {
    let record = captured(&prepared(script));
    let json = serde_json::to_string(&record).unwrap();
    let record: Net = serde_json::from_str(&json).unwrap();
    let rebuilt = fresh_with(Kind::Net, || rebuild(&record)).unwrap();
    let again = captured(&rebuilt);
    assert_eq!(again.links, record.links);
    assert_eq!(again.addresses, record.addresses);
    assert_eq!(again.rules, record.rules);
    assert_eq!(again.neighbours, record.neighbours);
    assert_eq!(again.settings, record.settings);
    assert_eq!(again.defaults, record.defaults);
    assert_eq!(
        filter::timeless(&again.nftables),
        filter::timeless(&record.nftables)
    );
    let beyond = |a: &Net, b: &Net| -> Vec<_> {
        let routes = a.routes.iter().filter(|route| !b.routes.contains(route));
        routes.cloned().collect()
    };
    assert_eq!(beyond(&again, &record), [], "too many routes");
    assert_eq!(beyond(&record, &again), [], "too few routes");
    assert_eq!(again.routes.len(), record.routes.len());
    (rebuilt, record)
}

#[test]
fn lo_of_a_new_namespace_is_down_until_brought_up() {
    let connect = || {
        TcpStream::connect("127.0.0.1:9")
            .unwrap_err()
            .raw_os_error()
    };
    let fd = fresh(Kind::Net).unwrap();
    inside(&[fd.as_fd()], || {
        assert_eq!(connect(), Some(libc::ENETUNREACH));
        lo_up()?;
        assert_eq!(connect(), Some(libc::ECONNREFUSED));
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_empty_namespace_comes_back_with_lo_down() {
    let (_, record) = comes_back("true");
    assert_eq!(record.settings, BTreeMap::new());
    assert!(record.defaults.len() > 100);
}

#[test]
fn lo_with_addresses_routes_rules_and_settings_comes_back() {
    let (fd, _) = comes_back(
        "ip link set lo up mtu 1400 txqueuelen 77 alias 'my lo'
         ip addr add 10.1.2.3/24 brd + dev lo label lo:x
         ip addr add 10.1.2.4/24 dev lo
         ip addr add 10.9.0.1 peer 10.9.0.2/32 dev lo metric 50
         ip addr add 10.8.0.1/24 dev lo valid_lft 5000000 preferred_lft 4000000 noprefixroute
         ip addr add fd00::1/64 dev lo
         ip addr add fd01::1/64 dev lo nodad
         ip route add 172.16.0.0/12 via 10.1.2.9 src 10.1.2.4 metric 7 mtu 1300
         ip route add blackhole 192.0.2.0/24
         ip route add 198.51.100.0/24 nexthop via 10.1.2.7 weight 2 nexthop via 10.1.2.8 weight 3
         ip route add default via 172.16.0.1 dev lo onlink table 1234567
         ip link add v0 type veth peer v1; ip link set v0 up; ip link set v1 up
         ip addr add fd04::1/64 dev v0 nodad
         ip route add fd02::/64 via fd04::9 dev v0
         ip -6 route add unreachable fd03::/64 metric 4000
         ip route del broadcast 10.1.2.255 table local
         ip rule add from 10.1.2.0/24 fwmark 5/7 lookup 1234567 priority 100
         ip rule add not iif lo ipproto tcp dport 80-90 prohibit priority 200
         ip -6 rule add to fd00::/64 uidrange 5-9 lookup 99 priority 300
         ip rule del priority 32767
         cd /proc/sys/net
         echo 1 >ipv4/ip_forward; echo 0 >ipv4/conf/lo/forwarding; echo 2 >ipv4/conf/all/rp_filter
         echo '2000 3000' >ipv4/ip_local_port_range; echo 77 >core/somaxconn
         echo 8080 >ipv4/ip_local_reserved_ports; echo 33 >unix/max_dgram_qlen
         echo 1 >ipv6/conf/all/forwarding; echo '4096 5000 6000' >ipv4/tcp_rmem",
    );
    inside(&[fd.as_fd()], || {
        assert!(TcpListener::bind("10.1.2.4:80").is_ok());
        assert!(TcpListener::bind("[fd00::1]:80").is_ok());
        Ok(())
    })
    .unwrap();
}

#[test]
fn disabled_ipv6_stays_disabled() {
    comes_back("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up");
}

#[test]
fn a_veth_pair_and_a_bridge_inside_come_back() {
    let (fd, _) = comes_back(
        "ip link set lo up
         ip link add name br7 index 77 address 02:00:00:00:00:07 type bridge ageing_time 1234
         ip link add name near index 20 type veth peer name far index 30
         ip link set near up; ip link set far mtu 1400 master br7 up; ip link set br7 up
         ip addr add 10.5.0.1/24 dev br7; ip addr add 10.6.0.1/24 dev near
         ip addr add fd05::1/64 dev near nodad
         ip route add default via 10.6.0.9
         ip neigh add 10.6.0.9 lladdr 02:00:00:00:00:09 dev near nud permanent
         ip neigh add proxy 10.6.0.8 dev near
         echo 1 >/proc/sys/net/ipv4/conf/near/proxy_arp
         sleep 2.5",
    );
    inside(&[fd.as_fd()], || {
        assert!(TcpListener::bind("[fd05::1]:80").is_ok());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_packet_filter_comes_back() {
    let (_, record) = comes_back(
        "ip link set lo up
         nft -f - <<'END'
         table inet t {
             set s { type ipv4_addr; flags timeout; elements = { 10.0.0.1, 10.0.0.2 timeout 3h } }
             chain c { type filter hook input priority 0; policy drop;
                 ip saddr @s tcp dport { 22, 80 } counter packets 5 bytes 300 accept
                 iifname lo accept
             }
         }
END
         sleep 0.1",
    );
    assert!(
        record.nftables.contains("packets 5 bytes 300"),
        "{}",
        record.nftables
    );
}

#[test]
fn what_cannot_be_rebuilt_is_refused_by_name() {
    assert_eq!(
        codes("ip link add x type veth peer name y; ip link set y netns 1; true"),
        ["E-NET-LINK"]
    );
    assert_eq!(codes("ip tuntap add t0 mode tun"), ["E-NET-LINK"]);
    assert_eq!(
        codes("ip link set lo up; ip nexthop add id 5 blackhole"),
        ["E-NET-NEXTHOP"]
    );
    assert_eq!(
        codes("tc qdisc add dev lo root handle 1: tbf rate 1mbit burst 10k latency 5ms"),
        ["E-NET-QDISC"]
    );
    assert_eq!(
        codes("ip xfrm policy add src 10.0.0.0/8 dst 10.0.0.0/8 dir out action block"),
        ["E-XFRM"]
    );
}

#[test]
fn nothing_is_refused_in_an_external_namespace() {
    let mut refusals = Refusals::new();
    let namespace = prepared("ip tuntap add t0 mode tun; ip addr add 10.3.3.3/24 dev t0");
    let net = capture(namespace.as_fd(), true, &mut refusals).unwrap();
    assert_eq!(refusals.as_slice(), []);
    assert_eq!(net.addresses[0].local.to_string(), "10.3.3.3");
    let fd = fresh_with(Kind::Net, || rebuild(&net)).unwrap();
    assert_eq!(
        captured(&fd).links,
        captured(&fresh(Kind::Net).unwrap()).links
    );
}

#[test]
fn lo_and_settings_of_an_external_namespace_come_back() {
    let namespace = prepared(
        "ip link set lo up; ip addr add 10.4.4.4/32 dev lo; ip tuntap add t0 mode tun
         echo 77 >/proc/sys/net/core/somaxconn; echo 1 >/proc/sys/net/ipv4/conf/t0/proxy_arp",
    );
    let net = capture(namespace.as_fd(), true, &mut Refusals::new()).unwrap();
    // Once in a new one, once where the runtime has done it all before.
    for fd in [fresh_with(Kind::Net, || rebuild(&net)).unwrap(), namespace] {
        inside(&[fd.as_fd()], || {
            rebuild(&net)?;
            assert!(TcpListener::bind("10.4.4.4:80").is_ok());
            assert!(TcpListener::bind("127.0.0.1:80").is_ok());
            assert!(TcpListener::bind("[::1]:80").is_ok());
            let length = std::fs::read_to_string("/proc/sys/net/core/somaxconn")?;
            assert_eq!(length.trim(), "77");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn an_image_names_no_file_outside_the_network_settings() {
    let mut record = captured(&fresh(Kind::Net).unwrap());
    record
        .settings
        .insert("../kernel/hostname".into(), "x".into());
    let failure = fresh_with(Kind::Net, || rebuild(&record)).unwrap_err();
    assert_eq!(failure.code(), "E-IMAGE-VALUE");
}
