package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/kapsel-io/kapsel/api/client"
	"github.com/kapsel-io/kapsel/verify"
)

// proof is a downloaded proof package and what it should prove.
type proof struct {
	path    string
	payload string // file with the webhook's body
	attempt client.Attempt
}

// awaitSeal waits for a signed tree head that covers every attempt.
func (r *run) awaitSeal(ctx context.Context) error {
	attempts := 0
	for _, event := range r.events {
		for _, d := range event.Deliveries {
			attempts += len(d.Attempts)
		}
	}
	var covered atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, event := range r.events {
		payload := filepath.Join(r.Dir, fmt.Sprintf("payload-%03d.json", i+1))
		if err := os.WriteFile(payload, r.sent[i].Body, 0o600); err != nil {
			return err
		}
		for _, d := range event.Deliveries {
			for _, attempt := range d.Attempts {
				p := proof{path: filepath.Join(r.Dir, attempt.ID+".json"), payload: payload, attempt: attempt}
				r.proofs = append(r.proofs, p)
				group.Go(func() error {
					if err := r.download(ctx, p); err != nil {
						return err
					}
					r.progress(int(covered.Add(1)), attempts, "attempts are covered by a signed tree head")
					return nil
				})
			}
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return r.sayHead(ctx)
}

// download waits until the attempt is sealed, and keeps its proof package.
func (r *run) download(ctx context.Context, p proof) error {
	for {
		answer, err := r.api.DownloadProofWithResponse(ctx, p.attempt.ID, nil)
		if err != nil {
			return err
		}
		switch answer.StatusCode() {
		case http.StatusOK:
			return os.WriteFile(p.path, answer.Body, 0o600)
		case http.StatusAccepted:
			if err := pause(ctx, pollEvery); err != nil {
				return err
			}
		default:
			return fmt.Errorf("proof of %s: %s", p.attempt.ID, answer.Body)
		}
	}
}

func (r *run) sayHead(ctx context.Context) error {
	answer, err := r.api.GetTreeHeadWithResponse(context.WithoutCancel(ctx), nil)
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return fmt.Errorf("signed tree head: %s", answer.Body)
	}
	r.say("tree size %d, root %s…", answer.JSON200.TreeSize, answer.JSON200.RootHash[:16])
	return nil
}

// verifyAll runs kapsel-verify on every package, as an auditor would.
func (r *run) verifyAll(ctx context.Context) error {
	if err := r.buildVerifier(ctx); err != nil {
		return err
	}
	var verified atomic.Int64
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, p := range r.proofs {
		group.Go(func() error {
			output, err := r.verify(groupCtx, p.path, "--payload", p.payload)
			if err != nil {
				return fmt.Errorf("%s was rejected: %w: %s", p.path, err, output)
			}
			if delivered := p.attempt.Outcome == "delivered"; delivered != strings.Contains(output, "Webhook delivered to ") {
				return fmt.Errorf("%s says something else than the API: %s", p.path, output)
			}
			r.progress(int(verified.Add(1)), len(r.proofs), "packages verified")
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, example := range []struct {
		what     string
		receiver *receiver
		kind     string
	}{
		{"A webhook that was delivered:", r.receivers.healthy, "attempt"},
		{"One that a filter left out:", r.receivers.choosy, "skipped"},
		{"An attempt that the flaky receiver turned away:", r.receivers.flaky, "attempt"},
		{"The decision to try the dead receiver no more:", r.receivers.dead, "dead"},
	} {
		if err := r.showVerified(ctx, example.what, example.receiver, example.kind); err != nil {
			return err
		}
	}
	return nil
}

// showVerified shows the verdict on the first proof of this kind for a receiver.
func (r *run) showVerified(ctx context.Context, what string, receiver *receiver, kind string) error {
	for _, p := range r.proofs {
		if p.attempt.Kind != kind || p.attempt.Number > 1 || p.attempt.EndpointURL != receiver.url {
			continue
		}
		output, err := r.verify(ctx, p.path, "--payload", p.payload)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(r.Out, "\n  %s\n  $ kapsel-verify --proof %s \\\n      --public-key %s --payload %s\n", what,
			filepath.Base(p.path), r.PublicKey, filepath.Base(p.payload))
		for line := range strings.Lines(output) {
			_, _ = fmt.Fprint(r.Out, "    "+line)
		}
		_, _ = fmt.Fprintln(r.Out)
		return nil
	}
	return errors.New("there is no such attempt")
}

// tamper changes single bytes of a package, and checks that each change is noticed.
func (r *run) tamper(ctx context.Context) error {
	original, err := os.ReadFile(r.proofs[0].path)
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		flip func(*verify.ProofPackage)
	}{
		{"leaf", func(p *verify.ProofPackage) { p.Leaf[len(p.Leaf)/2] ^= 1 }},
		{"inclusion proof", func(p *verify.ProofPackage) { p.InclusionProof[0][0] ^= 1 }},
		{"root hash", func(p *verify.ProofPackage) { p.STH.RootHash[31] ^= 1 }},
		{"signature", func(p *verify.ProofPackage) { p.STH.Signature[0] ^= 1 }},
	} {
		if err := r.tamperWith(ctx, original, part.name, part.flip); err != nil {
			return err
		}
	}
	other := r.proofs[len(r.proofs)-1].payload
	output, err := r.verify(ctx, r.proofs[0].path, "--payload", other)
	if !rejected(err) {
		return errors.New("a proof was accepted for another webhook's payload")
	}
	r.say("%-16s %s", "another payload", output)
	return nil
}

func (r *run) tamperWith(ctx context.Context, original []byte, name string, flip func(*verify.ProofPackage)) error {
	var pkg verify.ProofPackage
	if err := json.Unmarshal(original, &pkg); err != nil {
		return err
	}
	flip(&pkg)
	tampered, err := json.Marshal(pkg)
	if err != nil {
		return err
	}
	if bytes.Equal(tampered, original) {
		return fmt.Errorf("%s was not changed", name)
	}
	path := filepath.Join(r.Dir, "tampered.json")
	if err := os.WriteFile(path, tampered, 0o600); err != nil {
		return err
	}
	output, err := r.verify(ctx, path)
	if !rejected(err) {
		return fmt.Errorf("a package with a changed %s was not rejected: %s", name, output)
	}
	r.say("%-16s %s", name, output)
	return nil
}
