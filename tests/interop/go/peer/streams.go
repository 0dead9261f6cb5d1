package main

// Streams: EdgeVPN's packets (spec 8.1) and whatever else a test opens or serves by hand.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const packetProtocol protocol.ID = "/edgevpn/0.1"

type streamTable struct {
	mu   sync.Mutex
	last int
	open map[int]network.Stream
}

func (t *streamTable) add(s network.Stream) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[int]network.Stream{}
	}
	t.last++
	t.open[t.last] = s
	return t.last
}

func (t *streamTable) get(number int) (network.Stream, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, found := t.open[number]
	if !found {
		return nil, fmt.Errorf("no stream %d", number)
	}
	return s, nil
}

func (t *streamTable) remove(number int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, number)
}

// packetCounts is what came over the packet protocol, per peer.
type packetCounts struct {
	mu      sync.Mutex
	quiet   bool
	streams map[peer.ID]int
	packets map[peer.ID]int
	bytes   map[peer.ID]int
}

func (c *packetCounts) add(id peer.ID, streams, packets, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams == nil {
		c.streams, c.packets, c.bytes = map[peer.ID]int{}, map[peer.ID]int{}, map[peer.ID]int{}
	}
	c.streams[id] += streams
	c.packets[id] += packets
	c.bytes[id] += size
}

// serveStreams offers the packet protocol when this peer has an address, as EdgeVPN does.
func (n *node) serveStreams() {
	if n.settings.Ledger.Address != "" {
		n.host.SetStreamHandler(packetProtocol, n.onPackets(true))
	}
}

// onPackets takes each chunk that a read returns as one packet, which is what EdgeVPN writes to its TUN.
func (n *node) onPackets(admission bool) network.StreamHandler {
	return func(s network.Stream) {
		from := s.Conn().RemotePeer()
		if admission && !n.ledger.isMachine(from.String()) {
			tell("packets_refused", fields{"peer": from.String()})
			_ = s.Reset()
			return
		}
		n.packets.add(from, 1, 0, 0)
		number := n.streams.add(s)
		defer n.streams.remove(number)
		buffer := make([]byte, 32<<10)
		for {
			size, err := s.Read(buffer)
			if size > 0 {
				n.packets.add(from, 0, 1, size)
				if !n.packets.quiet {
					tell("packet", fields{"peer": from.String(), "stream": number, "data": append([]byte(nil), buffer[:size]...)})
				}
			}
			if errors.Is(err, io.EOF) {
				_ = s.Close()
				return
			}
			if err != nil {
				tell("packets_broken", fields{"peer": from.String(), "reason": err.Error()})
				_ = s.Reset()
				return
			}
		}
	}
}

// sendPacket is EdgeVPN's way: a stream for every packet, one write, close.
func (n *node) sendPacket(to peer.ID, packet []byte) error {
	ctx, cancel := context.WithTimeout(n.ctx, 15*time.Second)
	defer cancel()
	s, err := n.host.NewStream(ctx, to, packetProtocol)
	if err != nil {
		return err
	}
	if _, err := s.Write(packet); err != nil {
		_ = s.Reset()
		return err
	}
	return s.Close()
}

func randomBytes(size int) []byte {
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails
	return data
}

// modes are what a served protocol may do with a stream.
func (n *node) serveMode(mode, target string) (network.StreamHandler, error) {
	switch mode {
	case "packets":
		return n.onPackets(false), nil
	case "echo":
		return func(s network.Stream) { _, _ = io.Copy(s, s); _ = s.Close() }, nil
	case "hold": // tells of the stream and leaves reading and writing to commands
		return func(s network.Stream) {
			tell("stream", fields{"peer": s.Conn().RemotePeer().String(), "protocol": string(s.Protocol()), "stream": n.streams.add(s)})
		}, nil
	case "reset":
		return func(s network.Stream) { _ = s.Reset() }, nil
	case "tcp": // EdgeVPN's service: the first direction to finish closes both
		return func(s network.Stream) {
			c, err := net.Dial("tcp", target)
			if err != nil {
				_ = s.Reset()
				return
			}
			bridge(s, c)
		}, nil
	}
	return nil, fmt.Errorf("mode %q", mode)
}

// bridge copies both ways; the first direction that ends closes both sides (spec 8.3).
func bridge(s network.Stream, c net.Conn) {
	var once sync.Once
	end := func() { _ = s.Close(); _ = c.Close() }
	go func() { _, _ = io.Copy(c, s); once.Do(end) }()
	_, _ = io.Copy(s, c)
	once.Do(end)
}

func (n *node) stream(r request) (int, network.Stream, error) {
	var a struct {
		Stream int `json:"stream"`
	}
	if err := r.args(&a); err != nil {
		return 0, nil, err
	}
	s, err := n.streams.get(a.Stream)
	return a.Stream, s, err
}

func (n *node) open(id, name string) (network.Stream, error) {
	to, err := peer.Decode(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(n.ctx, 30*time.Second)
	defer cancel()
	return n.host.NewStream(ctx, to, protocol.ID(name))
}

func init() {
	// send_packet {peer, packets: [base64]} opens a stream for each; with "long" all go over one stream, a write each.
	commands["send_packet"] = func(n *node, r request) (fields, error) {
		var a struct {
			Peer    string   `json:"peer"`
			Packets [][]byte `json:"packets"`
			Long    bool     `json:"long"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		to, err := peer.Decode(a.Peer)
		if err != nil {
			return nil, err
		}
		if !a.Long {
			for number, packet := range a.Packets {
				if err := n.sendPacket(to, packet); err != nil {
					return fields{"sent": number}, err
				}
			}
			return fields{"sent": len(a.Packets)}, nil
		}
		s, err := n.open(a.Peer, string(packetProtocol))
		if err != nil {
			return nil, err
		}
		for number, packet := range a.Packets {
			if _, err := s.Write(packet); err != nil {
				return fields{"sent": number}, err
			}
		}
		return fields{"sent": len(a.Packets)}, s.Close()
	}

	// packet_counts {quiet} tells what came; quiet stops the event per packet.
	commands["packet_counts"] = func(n *node, r request) (fields, error) {
		var a struct {
			Quiet bool `json:"quiet"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		n.packets.mu.Lock()
		defer n.packets.mu.Unlock()
		n.packets.quiet = n.packets.quiet || a.Quiet
		peers := fields{}
		for id, streams := range n.packets.streams {
			peers[id.String()] = fields{"streams": streams, "packets": n.packets.packets[id], "bytes": n.packets.bytes[id]}
		}
		return fields{"peers": peers}, nil
	}

	// serve {protocol, mode, target}: packets, echo, hold, reset, tcp (target is host:port), none.
	commands["serve"] = func(n *node, r request) (fields, error) {
		var a struct {
			Protocol string `json:"protocol"`
			Mode     string `json:"mode"`
			Target   string `json:"target"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		if a.Mode == "none" {
			n.host.RemoveStreamHandler(protocol.ID(a.Protocol))
			return nil, nil
		}
		serve, err := n.serveMode(a.Mode, a.Target)
		if err == nil {
			n.host.SetStreamHandler(protocol.ID(a.Protocol), serve)
		}
		return nil, err
	}

	// forward {peer, protocol, listen} is EdgeVPN's service client: every TCP connection becomes a stream.
	commands["forward"] = func(n *node, r request) (fields, error) {
		var a struct {
			Peer     string `json:"peer"`
			Protocol string `json:"protocol"`
			Listen   string `json:"listen"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		listener, err := net.Listen("tcp", a.Listen)
		if err != nil {
			return nil, err
		}
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					s, err := n.open(a.Peer, a.Protocol)
					if err != nil {
						_ = c.Close()
						return
					}
					bridge(s, c)
				}()
			}
		}()
		return fields{"listens": listener.Addr().String()}, nil
	}

	// open_stream {peer, protocol} → {stream}.
	commands["open_stream"] = func(n *node, r request) (fields, error) {
		var a struct {
			Peer     string `json:"peer"`
			Protocol string `json:"protocol"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		s, err := n.open(a.Peer, a.Protocol)
		if err != nil {
			return nil, err
		}
		return fields{"stream": n.streams.add(s), "protocol": string(s.Protocol())}, nil
	}

	// write_stream {stream, data | size, count}.
	commands["write_stream"] = func(n *node, r request) (fields, error) {
		a := struct {
			Stream  int     `json:"stream"`
			Data    []byte  `json:"data"`
			Size    int     `json:"size"`
			Count   int     `json:"count"`
			Seconds float64 `json:"seconds"` // give up after these; 0: never
		}{Count: 1}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		s, err := n.streams.get(a.Stream)
		if err != nil {
			return nil, err
		}
		if a.Size > 0 {
			a.Data = randomBytes(a.Size)
		}
		if a.Seconds > 0 {
			_ = s.SetWriteDeadline(time.Now().Add(time.Duration(a.Seconds * float64(time.Second))))
		}
		written := 0
		for range a.Count {
			size, err := s.Write(a.Data)
			written += size
			if err != nil {
				return fields{"written": written}, err
			}
		}
		return fields{"written": written}, nil
	}

	// read_stream {stream, size}: exactly so many bytes, or with "all" until the end, or with "chunk" what one read gives.
	commands["read_stream"] = func(n *node, r request) (fields, error) {
		var a struct {
			Stream int  `json:"stream"`
			Size   int  `json:"size"`
			All    bool `json:"all"`
			Chunk  bool `json:"chunk"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		s, err := n.streams.get(a.Stream)
		if err != nil {
			return nil, err
		}
		var data []byte
		switch {
		case a.All:
			data, err = io.ReadAll(s)
		case a.Chunk:
			data = make([]byte, 32<<10)
			var size int
			size, err = s.Read(data)
			data = data[:size]
		default:
			data = make([]byte, a.Size)
			var size int
			size, err = io.ReadFull(s, data)
			data = data[:size]
		}
		return fields{"data": data, "eof": errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)}, ignoreEOF(err)
	}

	commands["close_write"] = func(n *node, r request) (fields, error) {
		_, s, err := n.stream(r)
		if err != nil {
			return nil, err
		}
		return nil, s.CloseWrite()
	}
	commands["close_stream"] = func(n *node, r request) (fields, error) {
		number, s, err := n.stream(r)
		if err != nil {
			return nil, err
		}
		n.streams.remove(number)
		return nil, s.Close()
	}
	commands["reset_stream"] = func(n *node, r request) (fields, error) {
		number, s, err := n.stream(r)
		if err != nil {
			return nil, err
		}
		n.streams.remove(number)
		return nil, s.Reset()
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
