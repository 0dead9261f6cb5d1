package main

// The ledger room (spec 4): gossipsub with EdgeVPN's options, a new PubSub for every topic, polled once a second.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// eventData is the longest message that an event carries; longer ones are told by their size.
const eventData = 64 << 10

type room struct {
	n *node

	mu        sync.Mutex
	cancel    context.CancelFunc
	topic     *pubsub.Topic
	public    *pubsub.Topic
	rotations int
	unopened  int
}

func newRoom(n *node) *room { return &room{n: n} }

// follow compares the derived topic with the joined one every second, for ever. The first one is joined when start answers.
func (r *room) follow(joined string) {
	for {
		if name := r.n.token.topic(time.Now(), ""); name != joined {
			joined = name
			if err := r.join(name); err != nil {
				tell("join_failed", fields{"topic": name, "reason": err.Error()})
			}
		}
		time.Sleep(time.Second)
	}
}

// join throws the old PubSub away without a word and makes a new one on the same host, as EdgeVPN does.
func (r *room) join(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		r.cancel()
	}
	ctx, cancel := context.WithCancel(r.n.ctx)
	r.cancel = cancel
	size := r.n.token.MaxMessageSize
	if r.n.settings.MaxMessage != 0 {
		size = r.n.settings.MaxMessage
	}
	options := []pubsub.Option{
		pubsub.WithMaxMessageSize(size),
		pubsub.WithFloodPublish(true),
		pubsub.WithPeerExchange(true),
	}
	var direct []peer.AddrInfo
	for _, text := range r.n.settings.Direct {
		info, err := addrInfo(text)
		if err != nil {
			return err
		}
		direct = append(direct, info)
	}
	if len(direct) > 0 {
		options = append(options, pubsub.WithDirectPeers(direct))
	}
	ps, err := pubsub.NewGossipSub(ctx, r.n.host, options...)
	if err != nil {
		return err
	}
	if r.topic, err = r.enter(ctx, ps, name); err != nil {
		return err
	}
	if r.n.settings.Public {
		if r.public, err = r.enter(ctx, ps, r.n.token.topic(time.Now(), "public")); err != nil {
			return err
		}
	}
	r.rotations++
	tell("topic", fields{"topic": name, "rotations": r.rotations})
	return nil
}

func (r *room) enter(ctx context.Context, ps *pubsub.PubSub, name string) (*pubsub.Topic, error) {
	topic, err := ps.Join(name)
	if err != nil {
		return nil, err
	}
	watcher, err := topic.EventHandler()
	if err != nil {
		return nil, err
	}
	subscription, err := topic.Subscribe()
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			change, err := watcher.NextPeerEvent(ctx)
			if err != nil {
				return
			}
			tell(map[pubsub.EventType]string{pubsub.PeerJoin: "subscribed", pubsub.PeerLeave: "unsubscribed"}[change.Type],
				fields{"peer": change.Peer.String(), "topic": name})
		}
	}()
	go func() {
		for {
			message, err := subscription.Next(ctx)
			if err != nil {
				return
			}
			if message.ReceivedFrom != r.n.host.ID() {
				r.receive(name, message)
			}
		}
	}()
	return topic, nil
}

// receive opens with the key of this moment; what does not open is counted and told.
func (r *room) receive(topic string, message *pubsub.Message) {
	var outer envelope
	if json.Unmarshal(message.Data, &outer) != nil {
		return
	}
	plain, err := unseal(r.n.token.sealKey(time.Now()), outer.Message)
	if err != nil {
		r.mu.Lock()
		r.unopened++
		r.mu.Unlock()
		tell("unopened", fields{"from": message.GetFrom().String(), "via": message.ReceivedFrom.String(), "topic": topic})
		return
	}
	if r.n.ledger != nil && r.n.ledger.receive(plain) {
		return
	}
	line := fields{
		"from": message.GetFrom().String(), "via": message.ReceivedFrom.String(), "topic": topic, "size": len(plain),
		"annotations": outer.Annotations,
	}
	if len(plain) <= eventData {
		line["data"] = plain
	}
	tell("message", line)
}

// publish seals with the key of this moment and sends on the joined topic.
func (r *room) publish(plain []byte, annotations map[string]any, public bool) error {
	sealed, err := seal(r.n.token.sealKey(time.Now()), plain)
	if err != nil {
		return err
	}
	data, err := json.Marshal(envelope{Message: sealed, Annotations: annotations})
	if err != nil {
		return err
	}
	return r.send(data, public)
}

func (r *room) send(data []byte, public bool) error {
	r.mu.Lock()
	topic := r.topic
	if public {
		topic = r.public
	}
	r.mu.Unlock()
	if topic == nil {
		return errors.New("no message room available")
	}
	return topic.Publish(r.n.ctx, data)
}

func (r *room) listPeers() []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.topic == nil {
		return nil
	}
	return r.topic.ListPeers()
}

func (n *node) needRoom() (*room, error) {
	if n.room == nil {
		return nil, errors.New("this peer was started without gossip")
	}
	return n.room, nil
}

func init() {
	// publish {data: base64} seals and sends it; {size} sends that many random-looking bytes; {sealed: false} sends the
	// data as the pubsub message's body, untouched. {count} repeats it.
	commands["publish"] = func(n *node, r request) (fields, error) {
		a := struct {
			Data        []byte         `json:"data"`
			Size        int            `json:"size"`
			Sealed      bool           `json:"sealed"`
			Public      bool           `json:"public"`
			Count       int            `json:"count"`
			Annotations map[string]any `json:"annotations"`
		}{Sealed: true, Count: 1}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		room, err := n.needRoom()
		if err != nil {
			return nil, err
		}
		if a.Size > 0 {
			a.Data = randomBytes(a.Size)
		}
		for range a.Count {
			if a.Sealed {
				err = room.publish(a.Data, a.Annotations, a.Public)
			} else {
				err = room.send(a.Data, a.Public)
			}
			if err != nil {
				return nil, err
			}
		}
		return fields{"size": len(a.Data)}, nil
	}

	// subscriptions lists the peers that are subscribed to the current ledger topic ("on-chain nodes").
	commands["subscriptions"] = func(n *node, _ request) (fields, error) {
		room, err := n.needRoom()
		if err != nil {
			return nil, err
		}
		peers := texts(room.listPeers())
		room.mu.Lock()
		defer room.mu.Unlock()
		name := ""
		if room.topic != nil {
			name = room.topic.String()
		}
		return fields{"peers": peers, "topic": name, "rotations": room.rotations, "unopened": room.unopened}, nil
	}

	// derived tells what the token derives at this moment, or at {unix}: for a look at a peer that disagrees.
	commands["derived"] = func(n *node, r request) (fields, error) {
		a := struct {
			Unix int64 `json:"unix"`
		}{time.Now().Unix()}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		at := time.Unix(a.Unix, 0)
		return fields{
			"topic": n.token.topic(at, ""), "public": n.token.topic(at, "public"), "seal_key": n.token.sealKey(at),
			"rendezvous": n.token.rendezvous(at), "cid": fmt.Sprint(contentID(n.token.rendezvous(at))),
		}, nil
	}
}
