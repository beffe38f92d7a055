// Package demo shows the main job of Kapsel once, for real, to a person who knows nothing of it: GitHub's webhooks go in
// signed, come out at four receivers, and every attempt is proved to somebody who trusts nothing but a public key.
// Each sentence it prints is a claim that was checked; the first one that doesn't hold ends the demo with an error.
package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/kapsel-io/kapsel/api/client"
)

// Config says against what the demo runs.
type Config struct {
	APIURL    string
	APIKey    string
	PublicKey string // hex; what an auditor was given
	Dir       string // proofs and the verifier's binary go here
	Out       io.Writer
	// Terminal says whether Out is one, so that a line can be overwritten.
	Terminal bool
}

// patience is how long any one step may take before the demo gives up.
const patience = 2 * time.Minute

// run is one run of the demo.
type run struct {
	Config
	api       *client.ClientWithResponses
	receivers *receivers
	endpoint  client.Endpoint
	secret    []byte
	sent      []sent         // in the order they were accepted
	events    []client.Event // of sent, once all their deliveries are over
	proofs    []proof
	verifier  string // path of the kapsel-verify binary
	line      sync.Mutex
}

// Run tells the story, and returns an error if any of it doesn't hold.
func Run(ctx context.Context, config Config) error {
	r := &run{Config: config}
	defer r.stopReceivers()
	for _, step := range []struct {
		title string
		tell  func(context.Context) error
	}{
		{"Four receivers and an endpoint that only GitHub may use", r.prepare},
		{"Real GitHub webhooks, signed", r.sendAll},
		{"What must not come in", r.sendWrong},
		{"Delivery", r.awaitDelivery},
		{"The dead receiver has recovered", r.redeliverDead},
		{"Secrets are exchanged", r.rotateSecrets},
		{"The log", r.awaitSeal},
		{"Proofs, checked by another process that knows the public key and nothing else", r.verifyAll},
		{"One byte changed", r.tamper},
	} {
		_, _ = fmt.Fprintf(r.Out, "\n%s\n", step.title)
		stepCtx, cancel := context.WithTimeout(ctx, patience)
		err := step.tell(stepCtx)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
	}
	return nil
}

// say prints a line of the story.
func (r *run) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.Out, "  "+format+"\n", args...)
}

// progress prints how far a step has come: on a terminal on one line that is overwritten, else only at its end.
func (r *run) progress(done, total int, what string) {
	r.line.Lock()
	defer r.line.Unlock()
	if r.Terminal && done < total {
		_, _ = fmt.Fprintf(r.Out, "\r  %d of %d %s", done, total, what)
	}
	if done == total {
		if r.Terminal {
			_, _ = fmt.Fprint(r.Out, "\r")
		}
		r.say("%d of %d %s", done, total, what)
	}
}

func (r *run) newClient() error {
	var err error
	r.api, err = client.NewClientWithResponses(r.APIURL, client.WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
		req.Header.Set("Authorization", "Bearer "+r.APIKey)
		return nil
	}))
	return err
}
