// Command pluginhost calls a provider as the Kairos agent does: it finds the plugins with the SDK's bus, publishes one
// event through go-pluggable, and prints each answer as a line of JSON.
//
// stdin: {"event": "agent.boot", "payload": {...}, "paths": ["/system/providers"]}. A payload of null is what kairos-init
// sends; "data" in its place is put into the event as it stands, JSON or not. "listed" asks for the SDK's list of events.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/kairos-io/kairos-sdk/bus"
	"github.com/mudler/go-pluggable"
)

type order struct {
	Event   string   `json:"event"`
	Payload any      `json:"payload"`
	Data    *string  `json:"data"`
	Paths   []string `json:"paths"`
	Listed  bool     `json:"listed"`
}

type answer struct {
	Plugin     string `json:"plugin"`
	Executable string `json:"executable"`
	State      string `json:"state"`
	Data       string `json:"data"`
	Error      string `json:"error"`
	Log        string `json:"log"`
}

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "pluginhost:", err)
		os.Exit(1)
	}
}

func serve() error {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if o.Listed {
		return out.Encode(bus.AllEvents)
	}
	event := pluggable.EventType(o.Event)
	// The event may be one that the SDK does not know.
	b := bus.NewBus(append(bus.AllEvents, event)...)
	if bus.IsEventDefined(event) {
		b = bus.NewBus()
	}
	b.Initialize(bus.WithProviderPaths(o.Paths...), bus.WithLoggerLevel("error"))
	var failed error
	var one sync.Mutex // several plugins answer at the same time
	b.Response(event, func(p *pluggable.Plugin, r *pluggable.EventResponse) {
		one.Lock()
		defer one.Unlock()
		if err := out.Encode(answer{p.Name, p.Executable, r.State, r.Data, r.Error, r.Logs}); err != nil {
			failed = err
		}
	})
	if o.Data != nil {
		b.Bus.Emit(string(event), &pluggable.Event{Name: event, Data: *o.Data})
		return failed
	}
	if _, err := b.Publish(event, o.Payload); err != nil {
		return err
	}
	return failed
}
