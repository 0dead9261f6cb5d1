package main

// Blocks and entries as they are on the wire (spec 5.2-5.4, 5.10), unsigned and signed.

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// entry is one value with its author; the order of fields is part of the block's hash.
type entry struct {
	Value     string
	Owner     string
	Version   uint64
	UpdatedAt int64
	Deleted   bool
	Sig       []byte
}

func (e entry) unsigned() bool {
	return e.Owner == "" && len(e.Sig) == 0 && !e.Deleted && e.Version == 0
}

// MarshalJSON writes an unsigned entry as the bare text that nodes before v0.35 know.
func (e entry) MarshalJSON() ([]byte, error) {
	if e.unsigned() {
		return json.Marshal(e.Value)
	}
	type plain entry
	return json.Marshal(plain(e))
}

// UnmarshalJSON reads either form.
func (e *entry) UnmarshalJSON(data []byte) error {
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		type plain entry
		return json.Unmarshal(data, (*plain)(e))
	}
	*e = entry{}
	return json.Unmarshal(data, &e.Value)
}

func (e entry) same(other entry) bool {
	return e.Value == other.Value && e.Owner == other.Owner && e.Version == other.Version &&
		e.UpdatedAt == other.UpdatedAt && e.Deleted == other.Deleted && bytes.Equal(e.Sig, other.Sig)
}

// canonical is what an author signs.
func (e entry) canonical(bucket, key string) []byte {
	var out bytes.Buffer
	number := func(n uint64) { _ = binary.Write(&out, binary.BigEndian, n) }
	text := func(s string) { number(uint64(len(s))); out.WriteString(s) }
	text(bucket)
	text(key)
	text(e.Owner)
	number(e.Version)
	number(uint64(e.UpdatedAt))
	if e.Deleted {
		out.WriteByte(1)
	} else {
		out.WriteByte(0)
	}
	text(e.Value)
	return out.Bytes()
}

func (e *entry) sign(key crypto.PrivKey, bucket, name string) error {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return err
	}
	e.Owner = id.String()
	e.Sig, err = key.Sign(e.canonical(bucket, name))
	return err
}

func (e entry) verify(bucket, key string) error {
	id, err := peer.Decode(e.Owner)
	if err != nil {
		return err
	}
	public, err := id.ExtractPublicKey()
	if err != nil {
		return err
	}
	good, err := public.Verify(e.canonical(bucket, key), e.Sig)
	if err == nil && !good {
		err = errors.New("signature does not match")
	}
	return err
}

type storage map[string]map[string]entry

type block struct {
	Index     int64
	Timestamp string
	Storage   storage
	Hash      string
	PrevHash  string
}

// hash is the v0.35 form; a receiver never computes it again.
func (b block) hash() string {
	sum := sha256.Sum256([]byte(fmt.Sprint(b.Index) + b.Timestamp + fmt.Sprint(b.Storage) + b.PrevHash))
	return hex.EncodeToString(sum[:])
}

// legacyBlock is what a node before v0.35 can decode: one object in it makes the whole block undecodable.
type legacyBlock struct {
	Index          int64
	Timestamp      string
	Storage        map[string]map[string]string
	Hash, PrevHash string
}

func (l legacyBlock) block() block {
	b := block{l.Index, l.Timestamp, storage{}, l.Hash, l.PrevHash}
	for bucket, keys := range l.Storage {
		b.Storage[bucket] = map[string]entry{}
		for key, value := range keys {
			b.Storage[bucket][key] = entry{Value: value}
		}
	}
	return b
}
