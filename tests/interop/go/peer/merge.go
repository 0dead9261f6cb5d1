package main

// Who may change what (spec 5.9): the merge of the modes observe and enforce.

import (
	"bytes"
	"encoding/json"
	"maps"
	"time"
)

// policies name the owned buckets and how an owner follows from key or value; all other buckets are open.
var policies = map[string]func(key string, e entry) string{
	"machines":    func(_ string, e entry) string { return peerIDOf(e) },
	"services":    func(_ string, e entry) string { return peerIDOf(e) },
	"files":       func(_ string, e entry) string { return peerIDOf(e) },
	"users":       func(key string, _ entry) string { return key },
	"egress":      func(key string, _ entry) string { return key },
	"dns":         func(string, entry) string { return "" },
	"healthcheck": func(key string, _ entry) string { return key },
}

// merge takes what the rules allow; the caller holds the lock. Nothing is sent for it.
func (l *ledger) merge(theirs storage) {
	now := time.Now()
	window := time.Duration(l.n.settings.Ledger.TTL * float64(time.Second))
	live := map[string]bool{}
	for id, e := range l.block.Storage["healthcheck"] {
		var at time.Time
		if !e.Deleted && json.Unmarshal([]byte(e.Value), &at) == nil && at.Add(window).After(now) {
			live[id] = true
		}
	}
	next := maps.Clone(l.block.Storage)
	changed := map[string]bool{}
	for bucket, keys := range theirs {
		for key, in := range keys {
			old, there := next[bucket][key]
			if there && in.same(old) {
				continue
			}
			owner, owned := policies[bucket]
			if !owned {
				if there && in.Version <= old.Version {
					continue
				}
			} else if reason := judge(bucket, key, in, old, there, owner, live, now, window); reason != "" {
				l.rejected++
				tell("rejected", fields{"bucket": bucket, "key": key, "owner": in.Owner, "reason": reason})
				if l.mode == "enforce" {
					continue
				}
			}
			if !changed[bucket] {
				next[bucket] = cloned(next[bucket])
				changed[bucket] = true
			}
			next[bucket][key] = in
		}
	}
	if len(changed) > 0 {
		l.commit(next)
	}
}

// judge is the table of spec 5.9; empty means accepted.
func judge(bucket, key string, in, old entry, there bool, ownerOf func(string, entry) string,
	live map[string]bool, now time.Time, window time.Duration,
) string {
	owner := old.Owner
	if owner == "" {
		owner = ownerOf(key, old)
	}
	expired := !live[owner]
	if bucket == "healthcheck" {
		expired = time.Unix(old.UpdatedAt, 0).Add(window).Before(now)
	}
	mayTake := in.Owner == owner || expired
	switch {
	case in.verify(bucket, key) != nil:
		return "invalid signature"
	case in.Deleted && !there:
		return "tombstone for unknown key"
	case in.Deleted && !mayTake:
		return "tombstone by non-owner of a live entry"
	case in.Deleted && in.Version <= old.Version:
		return "stale tombstone"
	case in.Deleted:
		return ""
	}
	if named := ownerOf(key, in); named != "" && named != in.Owner {
		return "value owner does not match signer"
	}
	switch {
	case !there:
		return ""
	case old.Deleted && in.Version <= old.Version:
		return "stale re-claim over tombstone"
	case old.Deleted:
		return ""
	case !mayTake:
		return "overwrite of a live entry owned by another peer"
	case in.Version < old.Version:
		return "rollback to an older version"
	case in.Version == old.Version && (in.Owner < old.Owner || in.Owner == old.Owner && bytes.Compare(in.Sig, old.Sig) <= 0):
		return "lost deterministic tie-break"
	}
	return ""
}
