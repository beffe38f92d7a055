package workflows

import (
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

// notYet names changes of workflows (the IDs of workflow.GetVersion) that this release can carry on and doesn't begin, with the version
// that it begins instead. A change enters here with the release that brings it, and leaves with the next, so that whatever a worker of
// the next begins, one of this release can carry on: while workers are replaced one by one, and if the next is taken back.
var notYet = map[string]workflow.Version{}

// PreferredVersion is what the workers' options say about it.
func PreferredVersion(in worker.PreferredVersionProviderInput) *worker.VersionPreference {
	if version, there := notYet[in.ChangeID]; there {
		return &worker.VersionPreference{Version: version}
	}
	return nil // the newest
}
