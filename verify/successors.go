package verify

import (
	"fmt"
	"slices"
)

// logs are those of which the packages of a delivery may be: the one that the caller names first, and its successors.
type logs struct {
	opts    Options  // for the first
	origins []string // of the successors
	vkeys   []string // theirs, in the same order
}

func (o Options) logs() (*logs, error) {
	l := &logs{opts: o, vkeys: o.Successors}
	l.opts.Successors = nil
	first, _, err := l.opts.trust()
	if err != nil {
		return nil, err
	}
	if len(l.vkeys) > 0 && first == "" {
		return nil, fmt.Errorf("%w: of a log with successors the name must be known: give its vkey, or the origin too", ErrOptions)
	}
	for _, vkey := range l.vkeys {
		origin, _, err := ParseVKey(vkey)
		if err != nil {
			return nil, fmt.Errorf("%w: successor: %w", ErrOptions, err)
		}
		if origin == first || slices.Contains(l.origins, origin) {
			return nil, fmt.Errorf("%w: the log %q is named twice", ErrOptions, origin)
		}
		l.origins = append(l.origins, origin)
	}
	return l, nil
}

// verify verifies a package with the key of the log that it says it is of. A package of none of them is rejected by the first one's.
func (l *logs) verify(pkg []byte) (*Result, error) {
	if len(l.origins) == 0 {
		return Package(pkg, l.opts)
	}
	p, err := ParsePackage(pkg)
	if err != nil {
		return nil, err
	}
	opts := l.opts
	if i := slices.Index(l.origins, p.Origin); i >= 0 {
		opts.PublicKey, opts.Origin, opts.VKey = nil, "", l.vkeys[i]
	}
	return Package(pkg, opts)
}

// succeed wants the leaves of a delivery, in their order, to be in logs of which none comes before the one of the leaf before.
func (l *logs) succeed(links []*Result) error {
	for i := 1; i < len(links); i++ {
		a, b := links[i-1], links[i]
		if slices.Index(l.origins, b.Origin) < slices.Index(l.origins, a.Origin) { // the first log has -1
			return fmt.Errorf("%w: leaf %d is in the log %q, but leaf %d before it in its successor %q",
				ErrChain, b.Leaf.Seq, b.Origin, a.Leaf.Seq, a.Origin)
		}
		if a.Origin != b.Origin && len(l.origins) == 0 {
			return fmt.Errorf("%w: packages of two logs, %q and %q", ErrChain, a.Origin, b.Origin)
		}
	}
	return nil
}
