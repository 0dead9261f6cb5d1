package main

// The ledger's life (spec 5.6-5.8, 8.2, 8.7): one snapshot, broadcast whole, replaced or merged by mode.

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
)

// ledgerSettings are the fields of "ledger" in the command "start".
type ledgerSettings struct {
	// Ownership is off, observe, enforce; legacy is off as v0.30 knew it; empty: no ledger, messages are only told.
	Ownership string  `json:"ownership"`
	Sync      float64 `json:"sync"`      // seconds between broadcasts of the whole ledger; 0: on change only
	Heartbeat float64 `json:"heartbeat"` // seconds; 0: none
	Address   string  `json:"address"`   // announced in machines; serves packets
	Hostname  string  `json:"hostname"`
	Version   string  `json:"version"`
	TTL       float64 `json:"ttl"` // liveness window in seconds
}

type ledger struct {
	n    *node
	mode string

	mu       sync.Mutex
	block    block
	rejected int
	dropped  int
}

func newLedger(n *node) *ledger {
	s := &n.settings.Ledger
	if s.TTL == 0 {
		s.TTL = 480
	}
	genesis := block{Storage: storage{}, Timestamp: time.Now().String()}
	genesis.Hash = block{}.hash()
	return &ledger{n: n, mode: s.Ownership, block: genesis}
}

func (l *ledger) signing() bool { return l.mode == "observe" || l.mode == "enforce" }

func every(seconds float64, do func()) {
	if seconds <= 0 {
		return
	}
	go func() {
		for {
			do()
			time.Sleep(time.Duration(seconds * float64(time.Second)))
		}
	}()
}

// start begins broadcasting and announcing. The gaps are plain, not EdgeVPN's growing ones: tests shall be quick.
func (l *ledger) start() {
	if l.mode == "" {
		return
	}
	s := l.n.settings.Ledger
	id := l.n.host.ID().String()
	every(s.Sync, func() { _ = l.broadcast() }) // "no message room available" is normal in the first second
	every(s.Heartbeat, func() {
		text, _ := json.Marshal(time.Now().UTC().Format(time.RFC3339))
		_, _ = l.write("healthcheck", id, string(text), false)
	})
	if s.Address == "" {
		return
	}
	record, err := json.Marshal(struct{ PeerID, Hostname, OS, Arch, Address, Version string }{
		id, s.Hostname, "linux", "amd64", s.Address, s.Version,
	})
	if err != nil {
		return
	}
	every(1, func() {
		if l.machineOwner(s.Address) != id {
			_, _ = l.write("machines", s.Address, string(record), false)
		}
	})
}

func (l *ledger) machineOwner(address string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return peerIDOf(l.block.Storage["machines"][address])
}

func peerIDOf(e entry) string {
	var named struct{ PeerID string }
	if e.Deleted || json.Unmarshal([]byte(e.Value), &named) != nil {
		return ""
	}
	return named.PeerID
}

// isMachine is the admission test of the packet protocol.
func (l *ledger) isMachine(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.block.Storage["machines"] {
		if peerIDOf(e) == id {
			return true
		}
	}
	return false
}

// write puts or deletes one value and broadcasts if that changed anything.
func (l *ledger) write(bucket, key, text string, remove bool) (bool, error) {
	l.mu.Lock()
	old, there := l.block.Storage[bucket][key]
	if remove && (!there || old.Deleted) {
		l.mu.Unlock()
		return false, nil
	}
	made := entry{Value: text}
	if l.signing() {
		if !remove && there && !old.Deleted && old.Value == text && old.Owner == l.n.host.ID().String() {
			l.mu.Unlock()
			return false, nil // one's own live entry stays as it is
		}
		now := time.Now()
		made.Version = max(old.Version+1, uint64(now.UnixNano()))
		made.UpdatedAt = now.Unix()
		made.Deleted = remove
		if err := made.sign(l.n.key, bucket, key); err != nil {
			l.mu.Unlock()
			return false, err
		}
	} else if there && !remove && old.Value == text {
		l.mu.Unlock()
		return false, nil
	}
	l.set(bucket, key, made, remove && !l.signing())
	l.mu.Unlock()
	return true, l.broadcast()
}

// set stores an entry in a new local block; the caller holds the lock. Maps that were shown are never changed.
func (l *ledger) set(bucket, key string, e entry, remove bool) {
	next := maps.Clone(l.block.Storage)
	next[bucket] = cloned(next[bucket])
	if remove {
		delete(next[bucket], key)
	} else {
		next[bucket][key] = e
	}
	l.commit(next)
}

func cloned(keys map[string]entry) map[string]entry {
	if keys == nil {
		return map[string]entry{}
	}
	return maps.Clone(keys)
}

func (l *ledger) commit(next storage) {
	// Nobody looks at the previous hash of a block that was never shown.
	l.block = block{Index: l.block.Index + 1, Timestamp: time.Now().UTC().String(), Storage: next, PrevHash: l.block.Hash}
}

// hashed is the present block; the caller holds the lock. The hash is made when somebody looks, because a ledger may be
// huge, and only where it is read: not where blocks are merged.
func (l *ledger) hashed() block {
	if l.block.Hash == "" && !l.signing() {
		l.block.Hash = l.block.hash()
	}
	return l.block
}

func (l *ledger) broadcast() error {
	l.mu.Lock()
	shown := l.hashed()
	l.mu.Unlock()
	text, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	if l.n.room == nil {
		return nil
	}
	return l.n.room.publish(gzipped(text), nil, false)
}

// receive takes an opened message; false when there is no ledger to take it.
func (l *ledger) receive(plain []byte) bool {
	if l.mode == "" {
		return false
	}
	theirs, err := l.decode(plain)
	if err != nil {
		l.mu.Lock()
		l.dropped++
		l.mu.Unlock()
		tell("block_dropped", fields{"reason": err.Error()})
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.mode {
	case "legacy":
		if theirs.Index > l.block.Index {
			l.block = theirs
		}
	case "off":
		if theirs.Index > l.block.Index || theirs.Index == l.block.Index && theirs.Hash > l.hashed().Hash {
			l.block = theirs
		}
	default:
		l.merge(theirs.Storage)
	}
	return true
}

func (l *ledger) decode(plain []byte) (block, error) {
	text, err := gunzipped(plain)
	if err != nil {
		return block{}, err
	}
	if l.mode == "legacy" {
		var old legacyBlock
		err := json.Unmarshal(text, &old)
		return old.block(), err
	}
	var b block
	err = json.Unmarshal(text, &b)
	if b.Storage == nil {
		b.Storage = storage{}
	}
	return b, err
}

func (e entry) told() fields {
	return fields{
		"value": e.Value, "owner": e.Owner, "version": fmt.Sprint(e.Version), "updated_at": e.UpdatedAt,
		"deleted": e.Deleted, "signed": len(e.Sig) > 0,
	}
}

func (n *node) needLedger() error {
	if n.ledger.mode == "" {
		return errors.New("this peer was started without a ledger")
	}
	return nil
}

func init() {
	// put {bucket, key, value} writes a value as JSON text; {text} writes exactly that text. delete removes.
	write := func(remove bool) handler {
		return func(n *node, r request) (fields, error) {
			var a struct {
				Bucket string  `json:"bucket"`
				Key    string  `json:"key"`
				Value  any     `json:"value"`
				Text   *string `json:"text"`
			}
			if err := r.args(&a); err != nil {
				return nil, err
			}
			if err := n.needLedger(); err != nil {
				return nil, err
			}
			text := ""
			if a.Text != nil {
				text = *a.Text
			} else if !remove {
				encoded, err := json.Marshal(a.Value)
				if err != nil {
					return nil, err
				}
				text = string(encoded)
			}
			changed, err := n.ledger.write(a.Bucket, a.Key, text, remove)
			return fields{"changed": changed}, err
		}
	}
	commands["put"] = write(false)
	commands["delete"] = write(true)

	// get {bucket, key} tells one entry, null when absent; the answer to a look at a huge ledger.
	commands["get"] = func(n *node, r request) (fields, error) {
		var a struct {
			Bucket string `json:"bucket"`
			Key    string `json:"key"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		n.ledger.mu.Lock()
		defer n.ledger.mu.Unlock()
		e, there := n.ledger.block.Storage[a.Bucket][a.Key]
		if !there {
			return fields{"entry": nil}, nil
		}
		return fields{"entry": e.told()}, nil
	}

	// ledger tells the whole of the local block: entries with their authors and tombstones, and what was refused.
	commands["ledger"] = func(n *node, _ request) (fields, error) {
		n.ledger.mu.Lock()
		defer n.ledger.mu.Unlock()
		buckets := fields{}
		for bucket, keys := range n.ledger.block.Storage {
			entries := fields{}
			for key, e := range keys {
				entries[key] = e.told()
			}
			buckets[bucket] = entries
		}
		return fields{
			"index": n.ledger.block.Index, "hash": n.ledger.hashed().Hash, "buckets": buckets,
			"rejected": n.ledger.rejected, "dropped": n.ledger.dropped,
		}, nil
	}

	commands["sync"] = func(n *node, _ request) (fields, error) { return nil, n.ledger.broadcast() }
}
