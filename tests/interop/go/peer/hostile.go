package main

// What a peer with the token, but without manners, may send.

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// flaw is one kind of bad block for the command "flood".
type flaw func(n *node, amount int) (storage, error)

func signed(n *node, bucket, key, value string, version uint64) (entry, error) {
	e := entry{Value: value, Version: version, UpdatedAt: time.Now().Unix()}
	return e, e.sign(n.key, bucket, key)
}

var flaws = map[string]flaw{
	// keys: so many small keys in one open bucket.
	"keys": func(_ *node, amount int) (storage, error) {
		keys := make(map[string]entry, amount)
		for number := range amount {
			keys[fmt.Sprintf("key-%07d", number)] = entry{Value: `"value"`}
		}
		return storage{"flood": keys}, nil
	},
	// buckets: so many buckets with one key.
	"buckets": func(_ *node, amount int) (storage, error) {
		s := make(storage, amount)
		for number := range amount {
			s[fmt.Sprintf("b%d", number)] = map[string]entry{"k": {Value: "1"}}
		}
		return s, nil
	},
	// big: one value of so many bytes that hardly compresses.
	"big": func(_ *node, amount int) (storage, error) {
		return storage{"flood": {"big": {Value: fmt.Sprintf("\"%x\"", randomBytes(amount/2))}}}, nil
	},
	// bomb: one value of so many equal bytes, which compresses to nearly nothing.
	"bomb": func(_ *node, amount int) (storage, error) {
		return storage{"flood": {"bomb": {Value: strings.Repeat("0", amount)}}}, nil
	},
	// versions: properly signed entries with versions far in the future, up to the largest.
	"versions": func(n *node, amount int) (storage, error) {
		keys := map[string]entry{}
		for number := range amount {
			key := fmt.Sprintf("v%d", number)
			e, err := signed(n, "flood", key, `"future"`, ^uint64(0)-uint64(number))
			if err != nil {
				return nil, err
			}
			keys[key] = e
		}
		return storage{"flood": keys}, nil
	},
	// foreign: so many heartbeats and machine records in the names of others, with signatures of ours.
	"foreign": func(n *node, amount int) (storage, error) {
		s := storage{"healthcheck": {}, "machines": {}}
		for number := range amount {
			_, public, err := crypto.GenerateEd25519Key(strings.NewReader(string(randomBytes(64))))
			if err != nil {
				return nil, err
			}
			id, err := peer.IDFromPublicKey(public)
			if err != nil {
				return nil, err
			}
			now, _ := json.Marshal(time.Now().UTC().Format(time.RFC3339))
			e, err := signed(n, "healthcheck", id.String(), string(now), uint64(time.Now().UnixNano()))
			if err != nil {
				return nil, err
			}
			s["healthcheck"][id.String()] = e
			address := fmt.Sprintf("10.1.0.%d", number%250+1)
			e, err = signed(n, "machines", address, fmt.Sprintf(`{"PeerID":%q,"Address":%q}`, id, address), uint64(time.Now().UnixNano()))
			if err != nil {
				return nil, err
			}
			e.Owner = id.String() // and so the signature is wrong as well
			s["machines"][address] = e
		}
		return s, nil
	},
}

func init() {
	// flood {kind, amount, index} publishes one block of a kind in "flaws", with that index.
	commands["flood"] = func(n *node, r request) (fields, error) {
		a := struct {
			Kind   string `json:"kind"`
			Amount int    `json:"amount"`
			Index  int64  `json:"index"`
		}{Amount: 1}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		room, err := n.needRoom()
		if err != nil {
			return nil, err
		}
		make, known := flaws[a.Kind]
		if !known {
			return nil, fmt.Errorf("no kind %q", a.Kind)
		}
		entries, err := make(n, a.Amount)
		if err != nil {
			return nil, err
		}
		b := block{Index: a.Index, Timestamp: time.Now().UTC().String(), Storage: entries, Hash: strings.Repeat("f", 64)}
		text, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		plain := gzipped(text)
		return fields{"json": len(text), "gzip": len(plain)}, room.publish(plain, nil, false)
	}

	// block {block} publishes that JSON as a block, whatever it is: gzipped and sealed.
	commands["block"] = func(n *node, r request) (fields, error) {
		var a struct {
			Block json.RawMessage `json:"block"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		room, err := n.needRoom()
		if err != nil {
			return nil, err
		}
		return nil, room.publish(gzipped(a.Block), nil, false)
	}

	// sign {bucket, key, text, version, updated_at, deleted} → {entry}, as it stands in a block.
	commands["sign"] = func(n *node, r request) (fields, error) {
		var a struct {
			Bucket    string `json:"bucket"`
			Key       string `json:"key"`
			Text      string `json:"text"`
			Version   uint64 `json:"version"`
			UpdatedAt int64  `json:"updated_at"`
			Deleted   bool   `json:"deleted"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		e := entry{Value: a.Text, Version: a.Version, UpdatedAt: a.UpdatedAt, Deleted: a.Deleted}
		if err := e.sign(n.key, a.Bucket, a.Key); err != nil {
			return nil, err
		}
		return fields{"entry": e}, nil
	}

	// entry {bucket, key, entry} puts it into the local block unchecked, and broadcasts.
	commands["entry"] = func(n *node, r request) (fields, error) {
		var a struct {
			Bucket string `json:"bucket"`
			Key    string `json:"key"`
			Entry  *entry `json:"entry"`
		}
		if err := r.args(&a); err != nil {
			return nil, err
		}
		if a.Entry == nil {
			return nil, errors.New("no entry")
		}
		n.ledger.mu.Lock()
		n.ledger.set(a.Bucket, a.Key, *a.Entry, false)
		n.ledger.mu.Unlock()
		return nil, n.ledger.broadcast()
	}
}
