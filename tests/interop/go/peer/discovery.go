package main

// How peers are found: mDNS with the token's raw tag (spec 6.1), and the DHT with the epoch's rendezvous (spec 6.2).

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	routedhost "github.com/libp2p/go-libp2p/p2p/host/routed"
	mh "github.com/multiformats/go-multihash"
)

// HandlePeerFound connects at once and never again, as EdgeVPN does.
func (n *node) HandlePeerFound(info peer.AddrInfo) {
	tell("mdns_found", fields{"peer": info.ID.String(), "addrs": texts(info.Addrs)})
	if err := n.host.Connect(n.ctx, info); err != nil {
		tell("mdns_connect_failed", fields{"peer": info.ID.String(), "reason": err.Error()})
	}
}

func (n *node) startMDNS() error {
	return mdns.NewMdnsService(n.host, n.token.MDNS, n).Start()
}

// rendezvousDHT is the public DHT's implementation with EdgeVPN's ring of two rendezvous values.
type rendezvousDHT struct {
	n         *node
	kad       *dht.IpfsDHT
	bootstrap []peer.AddrInfo

	mu   sync.Mutex
	ring []string
}

func (n *node) startDHT() error {
	modes := map[string]dht.ModeOpt{"client": dht.ModeClient, "server": dht.ModeServer, "auto": dht.ModeAuto}
	mode, known := modes[n.settings.DHT]
	if !known {
		return errors.New("dht is client, server or auto")
	}
	d := &rendezvousDHT{n: n}
	for _, text := range n.settings.Bootstrap {
		info, err := addrInfo(text)
		if err != nil {
			return err
		}
		d.bootstrap = append(d.bootstrap, info)
	}
	kad, err := dht.New(n.ctx, n.host, dht.Mode(mode), dht.BootstrapPeers(d.bootstrap...))
	if err != nil {
		return err
	}
	d.kad = kad
	n.dht = d
	n.host = routedhost.Wrap(n.host, kad)
	if err := kad.Bootstrap(n.ctx); err != nil {
		return err
	}
	if n.settings.Rounds > 0 {
		go func() {
			for {
				d.round()
				time.Sleep(time.Duration(n.settings.Rounds * float64(time.Second)))
			}
		}()
	}
	return nil
}

// round connects to the bootstrap peers, remembers the current rendezvous, then announces and searches both of the ring.
func (d *rendezvousDHT) round() {
	var waiting sync.WaitGroup
	for _, info := range d.bootstrap {
		if d.n.host.Network().Connectedness(info.ID) != network.Connected {
			waiting.Go(func() { _ = d.n.host.Connect(d.n.ctx, info) }) // who is away now may be there next time
		}
	}
	waiting.Wait()
	current := d.n.token.rendezvous(time.Now())
	d.mu.Lock()
	if len(d.ring) == 0 || d.ring[len(d.ring)-1] != current {
		d.ring = append(d.ring, current)
	}
	d.ring = d.ring[max(0, len(d.ring)-2):]
	ring := append([]string(nil), d.ring...)
	d.mu.Unlock()
	for _, value := range ring {
		if err := d.provide(value); err != nil {
			tell("provide_failed", fields{"key": value, "reason": err.Error()})
		}
		for _, info := range d.find(value) {
			if info.ID == d.n.host.ID() || len(info.Addrs) == 0 || d.n.host.Network().Connectedness(info.ID) == network.Connected {
				continue
			}
			ctx, cancel := context.WithTimeout(d.n.ctx, 2*time.Minute)
			err := d.n.host.Connect(ctx, info)
			cancel()
			reason := ""
			if err != nil {
				reason = err.Error()
			}
			tell("dht_found", fields{"peer": info.ID.String(), "addrs": texts(info.Addrs), "error": reason})
		}
	}
	tell("dht_round", fields{"ring": ring, "table": d.kad.RoutingTable().Size()})
}

// contentID is where the providers of a rendezvous value are kept.
func contentID(value string) cid.Cid {
	sum, err := mh.Sum([]byte(value), mh.SHA2_256, -1)
	if err != nil {
		panic(err) // a fixed algorithm on bytes
	}
	return cid.NewCidV1(cid.Raw, sum)
}

func (d *rendezvousDHT) provide(value string) error {
	ctx, cancel := context.WithTimeout(d.n.ctx, time.Minute)
	defer cancel()
	return d.kad.Provide(ctx, contentID(value), true)
}

func (d *rendezvousDHT) find(value string) []peer.AddrInfo {
	ctx, cancel := context.WithTimeout(d.n.ctx, 2*time.Minute)
	defer cancel()
	var found []peer.AddrInfo
	for info := range d.kad.FindProvidersAsync(ctx, contentID(value), 100) {
		found = append(found, info)
	}
	return found
}

func init() {
	type keyed struct {
		Key string `json:"key"` // default: the rendezvous of this moment
	}
	asked := func(n *node, r request) (string, error) {
		var a keyed
		if err := r.args(&a); err != nil {
			return "", err
		}
		if n.dht == nil {
			return "", errors.New("this peer was started without a DHT")
		}
		if a.Key == "" {
			a.Key = n.token.rendezvous(time.Now())
		}
		return a.Key, nil
	}
	commands["provide"] = func(n *node, r request) (fields, error) {
		key, err := asked(n, r)
		if err != nil {
			return nil, err
		}
		return fields{"key": key}, n.dht.provide(key)
	}
	commands["find"] = func(n *node, r request) (fields, error) {
		key, err := asked(n, r)
		if err != nil {
			return nil, err
		}
		found := []fields{}
		for _, info := range n.dht.find(key) {
			found = append(found, fields{"peer": info.ID.String(), "addrs": texts(info.Addrs)})
		}
		return fields{"key": key, "providers": found}, nil
	}
	// dht_round runs one of EdgeVPN's discovery rounds to its end.
	commands["dht_round"] = func(n *node, r request) (fields, error) {
		if _, err := asked(n, r); err != nil {
			return nil, err
		}
		n.dht.round()
		return nil, nil
	}
	commands["dht"] = func(n *node, r request) (fields, error) {
		if _, err := asked(n, r); err != nil {
			return nil, err
		}
		return fields{
			"mode":  map[dht.ModeOpt]string{dht.ModeClient: "client", dht.ModeServer: "server"}[n.dht.kad.Mode()],
			"table": texts(n.dht.kad.RoutingTable().ListPeers()),
		}, nil
	}
}
