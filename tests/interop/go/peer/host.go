package main

// The host, with EdgeVPN's options (spec 7), on TCP alone: made from go-libp2p's parts, because its all-in-one
// constructor would compile every other transport too.

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"sort"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	bhost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/conngater"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	relayclient "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// settings are the fields of the command "start".
type settings struct {
	Token        string         `json:"token"`
	Seed         string         `json:"seed"`          // hex, 32 bytes; random when empty
	Listen       []string       `json:"listen"`        // default: TCP on every IPv4 and IPv6 address
	Security     []string       `json:"security"`      // "tls", "noise", in order of preference
	Agent        string         `json:"agent"`         // identify; default edgevpn
	BlockSubnet  string         `json:"block_subnet"`  // never dialled; EdgeVPN blocks the VPN's
	HolePunch    bool           `json:"holepunch"`     // DCUtR
	RelayService bool           `json:"relay_service"` // circuit v2 hop, when publicly reachable
	NoGossip     bool           `json:"no_gossip"`
	MaxMessage   int            `json:"max_message"` // default: the token's
	Direct       []string       `json:"direct"`      // gossipsub's direct peers
	Public       bool           `json:"public"`      // join the public room as well
	MDNS         bool           `json:"mdns"`
	DHT          string         `json:"dht"`       // "", client, server, auto
	Bootstrap    []string       `json:"bootstrap"` // the DHT's; never the public ones
	Rounds       float64        `json:"rounds"`    // seconds between DHT rounds; 0: only on command
	Ledger       ledgerSettings `json:"ledger"`
}

type node struct {
	settings settings
	token    *token
	key      crypto.PrivKey
	host     host.Host
	ids      func(network.Conn) // waits for identify
	ctx      context.Context

	room    *room
	ledger  *ledger
	dht     *rendezvousDHT
	streams streamTable
	packets packetCounts

	mu     sync.Mutex
	agents map[peer.ID]event.EvtPeerIdentificationCompleted
}

func start(r request) (*node, fields, error) {
	s := settings{
		Listen:   []string{"/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"},
		Security: []string{"tls", "noise"},
		Agent:    "edgevpn",
	}
	if err := r.args(&s); err != nil {
		return nil, nil, err
	}
	parsed, err := parseToken(s.Token)
	if err != nil {
		return nil, nil, err
	}
	n := &node{settings: s, token: parsed, ctx: context.Background(), agents: map[peer.ID]event.EvtPeerIdentificationCompleted{}}
	if err := n.makeHost(); err != nil {
		return nil, nil, err
	}
	n.ledger = newLedger(n)
	n.serveStreams()
	if s.MDNS {
		if err := n.startMDNS(); err != nil {
			return nil, nil, fmt.Errorf("mdns: %w", err)
		}
	}
	if s.DHT != "" {
		if err := n.startDHT(); err != nil {
			return nil, nil, fmt.Errorf("dht: %w", err)
		}
	}
	if !s.NoGossip {
		n.room = newRoom(n)
		name := n.token.topic(time.Now(), "")
		if err := n.room.join(name); err != nil {
			return nil, nil, fmt.Errorf("room: %w", err)
		}
		go n.room.follow(name)
	}
	n.ledger.start()
	return n, n.self(), nil
}

func (n *node) self() fields {
	var addresses, protocols []string
	for _, address := range n.host.Addrs() {
		addresses = append(addresses, address.String()+"/p2p/"+n.host.ID().String())
	}
	for _, each := range n.host.Mux().Protocols() {
		protocols = append(protocols, string(each))
	}
	return fields{"peer": n.host.ID().String(), "addrs": addresses, "protocols": protocols}
}

func (n *node) makeHost() error {
	key, err := n.settings.identity()
	if err != nil {
		return err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return err
	}
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return err
	}
	if err := store.AddPrivKey(id, key); err != nil {
		return err
	}
	if err := store.AddPubKey(id, key.GetPublic()); err != nil {
		return err
	}
	gater, err := conngater.NewBasicConnectionGater(nil)
	if err != nil {
		return err
	}
	if n.settings.BlockSubnet != "" {
		_, subnet, err := net.ParseCIDR(n.settings.BlockSubnet)
		if err != nil {
			return err
		}
		if err := gater.BlockSubnet(subnet); err != nil {
			return err
		}
	}
	manager, err := connmgr.NewConnManager(160, 192)
	if err != nil {
		return err
	}
	// EdgeVPN runs without resource limits unless told otherwise.
	resources := &network.NullResourceManager{}
	bus := eventbus.NewBus()
	sw, err := swarm.NewSwarm(id, store, bus, swarm.WithConnectionGater(gater), swarm.WithResourceManager(resources))
	if err != nil {
		return err
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	var security []sec.SecureTransport
	for _, name := range n.settings.Security {
		switch name {
		case "tls":
			transport, err := libp2ptls.New(libp2ptls.ID, key, muxers)
			if err != nil {
				return err
			}
			security = append(security, transport)
		case "noise":
			transport, err := noise.New(noise.ID, key, muxers)
			if err != nil {
				return err
			}
			security = append(security, transport)
		default:
			return fmt.Errorf("security %q", name)
		}
	}
	up, err := upgrader.New(security, muxers, nil, resources, gater)
	if err != nil {
		return err
	}
	transport, err := tcp.NewTCPTransport(up, resources, nil)
	if err != nil {
		return err
	}
	if err := sw.AddTransport(transport); err != nil {
		return err
	}
	observed, err := observedaddrs.NewManager(bus, sw)
	if err != nil {
		return err
	}
	basic, err := bhost.NewHost(sw, &bhost.HostOpts{
		EventBus:             bus,
		ConnManager:          manager,
		EnablePing:           true,
		UserAgent:            n.settings.Agent,
		EnableHolePunching:   n.settings.HolePunch,
		EnableRelayService:   n.settings.RelayService,
		ObservedAddrsManager: observed,
	})
	if err != nil {
		return err
	}
	if err := relayclient.AddTransport(basic, up); err != nil {
		return err
	}
	var listen []ma.Multiaddr
	for _, text := range n.settings.Listen {
		address, err := ma.NewMultiaddr(text)
		if err != nil {
			return err
		}
		listen = append(listen, address)
	}
	if err := sw.Listen(listen...); err != nil {
		return err
	}
	observed.Start(sw)
	n.key, n.host = key, basic
	n.ids = func(c network.Conn) { basic.IDService().IdentifyConn(c) }
	if err := n.watch(bus); err != nil {
		return err
	}
	basic.Start()
	return nil
}

func (s settings) identity() (crypto.PrivKey, error) {
	seed, err := hex.DecodeString(s.Seed)
	if err != nil {
		return nil, err
	}
	if len(seed) == 0 {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		return key, err
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("a seed has %d bytes", ed25519.SeedSize)
	}
	key, _, err := crypto.KeyPairFromStdKey(new(ed25519.NewKeyFromSeed(seed)))
	return key, err
}

// watch tells of connections and of what peers say of themselves.
func (n *node) watch(bus event.Bus) error {
	subscription, err := bus.Subscribe([]any{
		new(event.EvtPeerConnectednessChanged),
		new(event.EvtPeerIdentificationCompleted),
		new(event.EvtPeerIdentificationFailed),
	}, eventbus.BufSize(1024))
	if err != nil {
		return err
	}
	go func() {
		for each := range subscription.Out() {
			switch e := each.(type) {
			case event.EvtPeerConnectednessChanged:
				tell(map[bool]string{true: "connected", false: "disconnected"}[e.Connectedness == network.Connected],
					fields{"peer": e.Peer.String()})
			case event.EvtPeerIdentificationCompleted:
				n.mu.Lock()
				n.agents[e.Peer] = e
				n.mu.Unlock()
				tell("identified", fields{"peer": e.Peer.String(), "agent": e.AgentVersion})
			case event.EvtPeerIdentificationFailed:
				tell("identify_failed", fields{"peer": e.Peer.String(), "reason": e.Reason.Error()})
			}
		}
	}()
	return nil
}

// addrInfo reads a multiaddr with /p2p/, or the bare ID of a known peer.
func addrInfo(text string) (peer.AddrInfo, error) {
	if id, err := peer.Decode(text); err == nil {
		return peer.AddrInfo{ID: id}, nil
	}
	info, err := peer.AddrInfoFromString(text)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	return *info, nil
}

func init() {
	commands["self"] = func(n *node, _ request) (fields, error) { return n.self(), nil }

	// connect {addr} dials; with "again" a second connection is made although there is one.
	commands["connect"] = func(n *node, r request) (fields, error) {
		var a struct {
			Addr  string `json:"addr"`
			Again bool   `json:"again"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		info, err := addrInfo(a.Addr)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(n.ctx, 30*time.Second)
		defer cancel()
		if a.Again {
			ctx = network.WithForceDirectDial(ctx, "asked for")
		}
		return fields{"peer": info.ID.String()}, n.host.Connect(ctx, info)
	}

	commands["disconnect"] = func(n *node, r request) (fields, error) {
		var a struct {
			Peer string `json:"peer"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		id, err := peer.Decode(a.Peer)
		if err != nil {
			return nil, err
		}
		return nil, n.host.Network().ClosePeer(id)
	}

	// peers lists connected peers with their connections and what identify said.
	commands["peers"] = func(n *node, _ request) (fields, error) {
		var list []fields
		for _, id := range n.host.Network().Peers() {
			var connections []fields
			for _, c := range n.host.Network().ConnsToPeer(id) {
				state := c.ConnState()
				connections = append(connections, fields{
					"direction": c.Stat().Direction.String(),
					"remote":    c.RemoteMultiaddr().String(),
					"security":  state.Security,
					"muxer":     state.StreamMultiplexer,
					"early":     state.UsedEarlyMuxerNegotiation,
					"limited":   c.Stat().Limited,
					"streams":   len(c.GetStreams()),
				})
			}
			n.mu.Lock()
			said := n.agents[id]
			n.mu.Unlock()
			one := fields{
				"peer": id.String(), "connections": connections, "agent": said.AgentVersion,
				"protocol_version": said.ProtocolVersion, "addrs": texts(said.ListenAddrs),
				"signed_record": said.SignedPeerRecord != nil, "observed": "",
				"protocols": protocolTexts(n.host.Peerstore().GetProtocols(id)),
			}
			if said.ObservedAddr != nil {
				one["observed"] = said.ObservedAddr.String()
			}
			list = append(list, one)
		}
		return fields{"peers": list}, nil
	}
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, 0, len(list))
	for _, each := range list {
		out = append(out, each.String())
	}
	return out
}

func protocolTexts(list []protocol.ID, err error) []string {
	if err != nil {
		return nil
	}
	out := protocol.ConvertToStrings(list)
	sort.Strings(out)
	return out
}
