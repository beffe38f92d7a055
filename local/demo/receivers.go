package demo

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/kapsel-io/kapsel/webhook"
)

// behaviour is how a receiver answers the n-th request (from 1) of one delivery.
type behaviour func(n int) int

// receivers are four services that get webhooks: one is well, one answers 503 twice before it takes each webhook, one takes none
// until it recovers, and one wants few of them.
type receivers struct {
	healthy, flaky, dead, choosy *receiver
}

// flakyFailures is how often the flaky receiver fails before it takes a webhook.
const flakyFailures = 2

func startReceivers(secret []byte) (*receivers, error) {
	var all receivers
	takes := func(int) int { return http.StatusOK }
	for _, r := range []struct {
		receiver **receiver
		answer   behaviour
	}{
		{&all.healthy, takes},
		{&all.flaky, func(n int) int {
			if n <= flakyFailures {
				return http.StatusServiceUnavailable
			}
			return http.StatusOK
		}},
		{&all.dead, func(int) int { return http.StatusInternalServerError }},
		{&all.choosy, takes},
	} {
		started, err := startReceiver(secret, r.answer)
		if err != nil {
			return nil, err
		}
		*r.receiver = started
	}
	return &all, nil
}

// each returns them in the order of the endpoint's destinations.
func (r *receivers) each() []*receiver { return []*receiver{r.healthy, r.flaky, r.dead, r.choosy} }

// stopReceivers ends the receivers, if they were started.
func (r *run) stopReceivers() {
	if r.receivers == nil {
		return
	}
	for _, one := range r.receivers.each() {
		_ = one.server.Close()
	}
}

// receiver checks what it gets as a careful service would: GitHub's signature still fits the body, byte for byte, and Kapsel's
// own (Standard Webhooks) fits by a secret that the receiver was given.
type receiver struct {
	url    string
	server *http.Server

	mu       sync.Mutex
	answer   behaviour
	github   [][]byte                   // GitHub's secrets
	kapsel   [][]byte                   // Kapsel's, whsec_…
	requests map[string]int             // by webhook-id
	signed   map[string]int             // by webhook-id: by how many of Kapsel's secrets the last request was signed
	bodies   map[[sha256.Size]byte]bool // of what it took
	wrong    []string
}

func startReceiver(secret []byte, answer behaviour) (*receiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start receiver: %w", err)
	}
	r := &receiver{
		url: "http://" + listener.Addr().String() + "/webhook", github: [][]byte{secret}, answer: answer,
		requests: map[string]int{}, signed: map[string]int{}, bodies: map[[sha256.Size]byte]bool{},
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	id := req.Header.Get("webhook-id")
	r.requests[id]++
	r.signed[id] = r.signers(req.Header, body)
	fromGitHub := slices.ContainsFunc(r.github, func(secret []byte) bool {
		return req.Header.Get("X-Hub-Signature-256") == webhook.SignGitHub(secret, body)
	})
	if err != nil || !fromGitHub || r.signed[id] == 0 {
		r.wrong = append(r.wrong, id)
	}
	status := r.answer(r.requests[id])
	if status == http.StatusOK {
		r.bodies[sha256.Sum256(body)] = true
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, http.StatusText(status))
}

// signers returns by how many of Kapsel's secrets a request is signed.
func (r *receiver) signers(headers http.Header, body []byte) (n int) {
	for _, secret := range r.kapsel {
		if (webhook.Source{Scheme: webhook.SchemeStandard}).Verify(headers, body, [][]byte{secret}, time.Now()) == nil {
			n++
		}
	}
	return n
}

// trust gives the receiver another secret of GitHub or of Kapsel.
func (r *receiver) trust(github []byte, kapsel *string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if github != nil {
		r.github = append(r.github, github)
	}
	if kapsel != nil {
		r.kapsel = append(r.kapsel, []byte(*kapsel))
	}
}

// recovers makes the receiver take what it gets from now on.
func (r *receiver) recovers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = func(int) int { return http.StatusOK }
}

// saw returns how many requests of a delivery the receiver has seen, and by how many secrets of Kapsel the last was signed.
func (r *receiver) saw(delivery string) (requests, signers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[delivery], r.signed[delivery]
}

// counts returns how many deliveries and requests the receiver has seen.
func (r *receiver) counts() (deliveries, requests int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.requests {
		requests += n
	}
	return len(r.requests), requests
}

// took says whether the receiver has taken exactly these bytes.
func (r *receiver) took(body []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bodies[sha256.Sum256(body)]
}

// misfits returns the webhook-ids of requests whose signature didn't fit their body.
func (r *receiver) misfits() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wrong
}
