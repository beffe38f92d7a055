package main

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// documents are the repository's pages, by their paths from its root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	root := os.DirFS("..")
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "verify/*.md", "verify/testdata/vectors/*.md"} {
		names, err := fs.Glob(root, pattern)
		require.NoError(t, err)
		require.NotEmpty(t, names, pattern)
		for _, name := range names {
			text, err := fs.ReadFile(root, name)
			require.NoError(t, err)
			texts[name] = string(text)
		}
	}
	return texts
}

var (
	fenced  = regexp.MustCompile("(?ms)^```.*?^```")
	link    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+?) *$`)
	// notInAnchor is what GitHub leaves out of a heading's anchor.
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

// anchors are the names under which the headings of a page can be linked to, of headings that come once: the anchor of a
// second one would change with the order of the page.
func anchors(t *testing.T, name, text string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		title := link.ReplaceAllString(h[1], "]")
		anchor := strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
		_, again := found[anchor]
		found[anchor] = !again
	}
	require.NotEmpty(t, found, name)
	return found
}

// Every relative link leads to a file and a heading that are there.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	t.Parallel()
	root := os.DirFS("..")
	texts := documents(t)
	files, headings := 0, 0
	for name, text := range texts {
		for _, l := range link.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			if strings.Contains(l[1], ":") { // another site
				continue
			}
			file, anchor, hasAnchor := strings.Cut(l[1], "#")
			target := name
			if file != "" {
				target = path.Join(path.Dir(name), file)
				_, err := fs.Stat(root, target)
				require.NoError(t, err, "%s links to %s", name, l[1])
				files++
			}
			if hasAnchor {
				page, isPage := texts[target]
				require.True(t, isPage, "%s links to a heading of %s, which is no page", name, target)
				require.True(t, anchors(t, target, page)[anchor], "%s links to %s, and there is no such heading", name, l[1])
				headings++
			}
		}
	}
	require.Greater(t, files, 80, "links to files: the pattern finds too few")
	require.Greater(t, headings, 2, "links to headings: the pattern finds too few")
}

// A claim is as good as its test: those that pages name exist.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\)`)
	require.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, found := range declared.FindAllSubmatch(source, -1) {
			tests[string(found[1])] = true
		}
		return err
	}))
	names := 0
	for name, text := range documents(t) {
		for _, found := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(text, -1) {
			require.True(t, tests[found[1]], "%s names %s", name, found[1])
			names++
		}
	}
	require.Greater(t, names, 60)
}
