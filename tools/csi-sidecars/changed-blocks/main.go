// Prints which blocks a VolumeSnapshot has, or which of them changed since an earlier one, as JSON: what a backup program does that
// uses Kubernetes' own library for it, with the rights of the ServiceAccount in KUBECONFIG.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	"k8s.io/client-go/tools/clientcmd"
)

func run() error {
	args := iterator.Args{Emitter: &iterator.JSONEmitter{Writer: os.Stdout}}
	flag.StringVar(&args.Namespace, "namespace", "default", "the namespace of the snapshots")
	flag.StringVar(&args.SnapshotName, "snapshot", "", "the VolumeSnapshot")
	flag.StringVar(&args.PrevSnapshotName, "previous", "", "an earlier VolumeSnapshot of the same volume: only what changed since it")
	flag.StringVar(&args.CSIDriver, "driver", "", "the CSI driver, for who may not look at the snapshot to learn it")
	flag.Parse()

	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv(clientcmd.RecommendedConfigPathEnvVar))
	if err != nil {
		return err
	}
	if args.Clients, err = iterator.BuildClients(config); err != nil {
		return err
	}
	return iterator.GetSnapshotMetadata(context.Background(), args)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
