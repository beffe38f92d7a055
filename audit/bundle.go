package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

const (
	bundleFormat = "kapsel.leaves/v1"
	bundleEnding = ".jsonl"
	agedEnding   = ".jsonl.age"

	// bundleStep is how many of the log's leaves are looked through at once for those of the tenant.
	bundleStep = 16 * tileWidth
)

// BundleConfig says whose leaves to write, and where to.
type BundleConfig struct {
	DB *pgxpool.Pool // role kapsel_engine, for tiles and heads
	// API is a pool of role kapsel_api: with it the database itself shows only the tenant's leaves.
	API    *pgxpool.Pool
	Log    postgres.LogRow
	Tenant uuid.UUID
	// Dir gets a directory for the tenant, mode 0700, with a file for each call that found anything, mode 0600.
	Dir string
	// Recipients can read the files, which are encrypted to them (age); none: they are not encrypted.
	Recipients []age.Recipient
	Progress   func(Progress) // may be nil
}

// Bundled says what was written.
type Bundled struct {
	TenantID  string `json:"tenant_id"`
	File      string `json:"file,omitempty"` // "" if the tenant has no leaf that wasn't written before
	From      uint64 `json:"from"`           // the file holds the tenant's leaves of [From, To)
	To        uint64 `json:"to"`
	Leaves    int    `json:"leaves"`
	Encrypted bool   `json:"encrypted"`
}

// bundleHead is the first line of a bundle. A proof package (see verify.ProofPackage) is Package with the members of a leaf's
// line but leaf_hash.
type bundleHead struct {
	Format   string        `json:"format"` // kapsel.leaves/v1
	TenantID string        `json:"tenant_id"`
	From     uint64        `json:"from"`
	To       uint64        `json:"to"`
	Package  bundlePackage `json:"package"`
}

// bundlePackage is what all packages of a bundle have in common: they are for the same head.
type bundlePackage struct {
	Format     string             `json:"format"` // kapsel.proof/v1
	Origin     string             `json:"origin"`
	VKey       string             `json:"vkey"`
	LogKeyID   verify.Hex         `json:"log_key_id"`
	STH        verify.PackageHead `json:"sth"`
	Checkpoint string             `json:"checkpoint"`
}

// bundledLeaf is a line of a bundle. An erased leaf has no leaf and no salts; its hash is still proved.
type bundledLeaf struct {
	LeafIndex      uint64        `json:"leaf_index"`
	LeafHash       verify.Hex    `json:"leaf_hash"`
	Leaf           verify.Base64 `json:"leaf,omitempty"`
	Salts          *verify.Salts `json:"salts,omitempty"`
	InclusionProof verify.Hashes `json:"inclusion_proof"`
}

// bundleEnd is the last line: without it the file is cut off.
type bundleEnd struct {
	Leaves int `json:"leaves"`
}

// Bundle writes a tenant's leaves up to the newest published head, from where the last bundle in its directory ended, with
// salts and inclusion proofs: enough for the tenant to verify each offline. A leaf that isn't proved is written nowhere;
// the error is then ErrContradiction. A file appears once it is whole.
func Bundle(ctx context.Context, config BundleConfig) (*Bundled, error) {
	done, err := writeBundle(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("bundle leaves of %s: %w", id.Tenant.Format(config.Tenant), err)
	}
	return done, nil
}

func writeBundle(ctx context.Context, config BundleConfig) (*Bundled, error) {
	dir := filepath.Join(config.Dir, id.Tenant.Format(config.Tenant))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	head, keys, _, err := newestHead(ctx, config.DB, config.Log)
	if err != nil {
		return nil, err
	}
	b := &bundler{BundleConfig: config, head: head, keys: keys, tiles: map[attestation.TileID][]byte{},
		done: Bundled{TenantID: id.Tenant.Format(config.Tenant), To: head.TreeSize, Encrypted: len(config.Recipients) > 0}}
	if b.done.From, err = bundledTo(dir); err != nil {
		return nil, err
	}
	if b.done.From > b.done.To {
		return nil, fmt.Errorf("%w: %s has leaves up to %d, the newest head covers %d", ErrContradiction, dir, b.done.From, b.done.To)
	}
	temp, err := os.CreateTemp(dir, ".bundle-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	if err := b.encrypt(ctx, temp); err != nil || b.done.Leaves == 0 {
		_ = temp.Close()
		return &b.done, err
	}
	ending := bundleEnding
	if b.done.Encrypted {
		ending = agedEnding
	}
	b.done.File = filepath.Join(dir, fmt.Sprintf("%012d-%012d%s", b.done.From, b.done.To, ending))
	return &b.done, putInPlace(temp, b.done.File, 0o600, nil)
}

// bundledTo is where the last bundle in a directory ends. Each file is named for the range of leaves that it covers.
func bundledTo(dir string) (uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var end uint64
	for _, entry := range entries {
		name, _, found := strings.Cut(entry.Name(), bundleEnding)
		_, to, isRange := strings.Cut(name, "-")
		if !found || !isRange || strings.HasPrefix(name, ".") {
			continue
		}
		n, err := strconv.ParseUint(to, 10, 53)
		if err != nil {
			return 0, fmt.Errorf("%s isn't named for a range of leaves; move it elsewhere", filepath.Join(dir, entry.Name()))
		}
		end = max(end, n)
	}
	return end, nil
}

// bundler is a bundle under way.
type bundler struct {
	BundleConfig
	head  *postgres.PublishedHead
	keys  *keychain
	tiles map[attestation.TileID][]byte // those that were read last
	done  Bundled
}

// encrypt writes the bundle to w, to be read by the recipients only, if there are any.
func (b *bundler) encrypt(ctx context.Context, w io.Writer) error {
	if len(b.Recipients) == 0 {
		return b.write(ctx, json.NewEncoder(w))
	}
	sealed, err := age.Encrypt(w, b.Recipients...)
	if err != nil {
		return err
	}
	if err := b.write(ctx, json.NewEncoder(sealed)); err != nil {
		return err
	}
	return sealed.Close()
}

func (b *bundler) write(ctx context.Context, lines *json.Encoder) error {
	if err := lines.Encode(b.first()); err != nil {
		return err
	}
	for from := b.done.From; from < b.done.To; from += bundleStep {
		to := min(from+bundleStep, b.done.To)
		var leaves []postgres.StoredLeaf
		err := postgres.InTenant(ctx, b.API, b.Tenant, func(tx pgx.Tx) (err error) {
			leaves, err = postgres.Leaves(ctx, tx, b.Log.ID, from, to)
			return err
		})
		if err != nil {
			return err
		}
		for i := range leaves {
			line, err := b.prove(ctx, &leaves[i])
			if err != nil {
				return err
			}
			if err := lines.Encode(line); err != nil {
				return err
			}
			b.done.Leaves++
		}
		if b.Progress != nil {
			b.Progress(Progress{Leaves: to, Of: b.done.To})
		}
	}
	return lines.Encode(bundleEnd{Leaves: b.done.Leaves})
}

func (b *bundler) first() bundleHead {
	head := bundleHead{Format: bundleFormat, TenantID: b.done.TenantID, From: b.done.From, To: b.done.To}
	for _, key := range b.keys.keys {
		if bytes.Equal(verify.LogKeyID(key), b.head.KeyID) {
			head.Package = bundlePackage{Format: verify.Format, Origin: b.Log.Origin, VKey: verify.VKey(b.Log.Origin, key), LogKeyID: b.head.KeyID,
				Checkpoint: string(b.head.Checkpoint), STH: verify.NewPackageHead(verify.SignedTreeHead{TreeSize: b.head.TreeSize,
					Timestamp: b.head.Timestamp, RootHash: b.head.RootHash, Signature: b.head.Signature})}
		}
	}
	return head
}

// prove makes a leaf's line, and makes sure that the proof holds.
func (b *bundler) prove(ctx context.Context, leaf *postgres.StoredLeaf) (*bundledLeaf, error) {
	index := uint64(leaf.Index)
	path, err := attestation.ProveInclusion(ctx, b.readTiles, index, b.head.TreeSize)
	if err == nil {
		err = verify.Inclusion(leaf.Hash, index, b.head.TreeSize, path, b.head.RootHash)
	}
	if err == nil && leaf.Bytes != nil && !bytes.Equal(leafHashOf(leaf.Bytes), leaf.Hash) {
		err = errors.New("its bytes don't hash to its leaf hash")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: leaf %d: %w; see `kapsel log fsck`", ErrContradiction, index, err)
	}
	line := &bundledLeaf{LeafIndex: index, LeafHash: leaf.Hash, Leaf: leaf.Bytes, InclusionProof: path}
	if leaf.Bytes != nil && leaf.Secrets != nil {
		line.Salts, err = attestation.SaltsOf(leaf.Secrets[:attestation.SecretSize], leaf.Secrets[attestation.SecretSize:])
	}
	return line, err
}

// maxTiles bounds the tiles that are kept: neighbouring leaves are proved from the same few.
const maxTiles = 64

func (b *bundler) readTiles(ctx context.Context, ids []attestation.TileID) (map[attestation.TileID][]byte, error) {
	var missing []attestation.TileID
	for _, tile := range ids {
		if _, ok := b.tiles[tile]; !ok {
			missing = append(missing, tile)
		}
	}
	if len(missing) > 0 {
		if len(b.tiles) > maxTiles {
			clear(b.tiles)
			missing = ids
		}
		read, err := readTiles(ctx, b.DB, b.Log.ID, missing)
		if err != nil {
			return nil, err
		}
		for tile, hashes := range read {
			b.tiles[tile] = hashes
		}
	}
	return b.tiles, nil
}
