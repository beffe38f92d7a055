package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/internal/report"
)

// chainReport is what a person reads about a delivery.
func chainReport(c *verify.Chain) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(report.Printable(fmt.Sprintf(format, args...)) + "\n")
	}
	if c.Complete() {
		line("Delivery %s: the chain is complete, %d leaves", c.Delivery, len(c.Links))
	} else {
		line("Delivery %s: the chain is NOT complete, %d leaves are here", c.Delivery, len(c.Links))
	}
	first := c.Links[0]
	for _, r := range c.Links {
		successor := ""
		if r.Origin != first.Origin {
			successor = " of " + r.Origin
		}
		line("  %d  %s  %s/%s  HTTP status: %s  leaf %d%s", r.Leaf.Seq, r.Leaf.Time().Format(time.RFC3339),
			r.Leaf.Kind, r.Leaf.Outcome, report.Status(r.Leaf), r.LeafIndex, successor)
	}
	line("  payload: %s", first.Payload)
	line("  url: %s", first.URL)
	for _, m := range c.Missing {
		line("  missing: %s", m)
	}
	for _, w := range chainWarnings(c) {
		line("  warning: %s", w)
	}
	return b.String()
}

// chainWarnings are the chain's own and, with their number, those of its leaves.
func chainWarnings(c *verify.Chain) []string {
	list := append([]string{}, c.Warnings...)
	for _, r := range c.Links {
		for _, w := range r.Warnings {
			list = append(list, fmt.Sprintf("leaf %d: %s", r.Leaf.Seq, w))
		}
	}
	return list
}

// chainVerdict is what a program reads about a delivery. A rejected one has only the first members and the error.
type chainVerdict struct {
	Verified bool   `json:"verified"` // the packages hold and don't contradict each other
	Complete bool   `json:"complete"`
	Error    string `json:"error,omitempty"`
	*chainLinks
}

type chainLinks struct {
	Delivery string      `json:"delivery_id"`
	Outcome  string      `json:"outcome"` // kind/outcome of the terminal leaf, "" if it isn't there
	Leaves   []chainLink `json:"leaves"`
	Missing  []string    `json:"missing"`
	Warnings []string    `json:"warnings"`
}

type chainLink struct {
	Leaf      *verify.Leaf `json:"leaf"`
	LeafHash  verify.Hex   `json:"leaf_hash"`
	LeafIndex uint64       `json:"leaf_index"`
	Payload   verify.Check `json:"payload"`
	URL       verify.Check `json:"url"`
}

func newChainVerdict(c *verify.Chain) chainVerdict {
	v := chainVerdict{Verified: true, Complete: c.Complete(), chainLinks: &chainLinks{
		Delivery: c.Delivery, Missing: append([]string{}, c.Missing...), Warnings: chainWarnings(c),
	}}
	if last := c.Terminal(); last != nil {
		v.Outcome = last.Kind + "/" + last.Outcome
	}
	for _, r := range c.Links {
		v.Leaves = append(v.Leaves, chainLink{Leaf: r.Leaf, LeafHash: r.LeafHash, LeafIndex: r.LeafIndex, Payload: r.Payload, URL: r.URL})
	}
	return v
}

// nameFile says which file a rejected package is.
func nameFile(err error, names []string) string {
	var rejected *verify.PackageError
	if errors.As(err, &rejected) {
		return names[rejected.Index] + ": " + rejected.Err.Error()
	}
	return err.Error()
}
