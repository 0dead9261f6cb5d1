// Command peer is one EdgeVPN-shaped libp2p node for tests: host, gossip, rotation, discovery, ledger and streams on the
// real Go stack with EdgeVPN's options, written from the specification and driven from outside.
//
// One JSON object per line on stdin is a command: {"id": 7, "do": "connect", "addr": "/ip4/..."}. Its answer is one line
// on stdout with the same id under "re": {"re": 7, ...} or {"re": 7, "error": "..."}. Lines with "event" tell what
// happened meanwhile. The first command is "start". The end of stdin ends the program.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// fields is one JSON object of the control protocol, as it goes out.
type fields = map[string]any

// request is one command as it came in.
type request struct {
	ID  int64  `json:"id"`
	Do  string `json:"do"`
	raw json.RawMessage
}

// args decodes the command's own fields. Unknown ones are refused: a misspelt option would test nothing.
func (r request) args(into any) error {
	return decodeStrict(r.raw, into)
}

type handler func(*node, request) (fields, error)

// commands is filled by the files that implement them.
var commands = map[string]handler{}

var output struct {
	sync.Mutex
	encoder *json.Encoder
}

func emit(line fields) {
	output.Lock()
	defer output.Unlock()
	if err := output.encoder.Encode(line); err != nil {
		os.Exit(1) // nobody listens any more
	}
}

// tell reports an event.
func tell(event string, more fields) {
	line := fields{"event": event}
	for key, value := range more {
		line[key] = value
	}
	emit(line)
}

func main() {
	output.encoder = json.NewEncoder(os.Stdout)
	output.encoder.SetEscapeHTML(false)
	if err := serve(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func serve(in io.Reader) error {
	reader := bufio.NewReaderSize(in, 1<<20)
	var current *node
	for {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("not a command: %w", err)
		}
		r.raw = line
		if r.Do == "start" {
			if current != nil {
				answer(r, nil, errors.New("started already"))
				continue
			}
			started, said, err := start(r)
			current = started
			answer(r, said, err)
			continue
		}
		do, known := commands[r.Do]
		switch {
		case !known:
			answer(r, nil, fmt.Errorf("no command %q", r.Do))
		case current == nil:
			answer(r, nil, errors.New("start comes first"))
		default:
			// Commands may wait (dials, reads); they must not hold each other up. Who needs an order waits for answers.
			go func() {
				said, err := do(current, r)
				answer(r, said, err)
			}()
		}
	}
}

func answer(r request, said fields, err error) {
	line := fields{"re": r.ID}
	for key, value := range said {
		line[key] = value
	}
	if err != nil {
		line["error"] = err.Error()
	}
	emit(line)
}
