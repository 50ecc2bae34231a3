#!/usr/bin/env bash
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: gke.sh --name=NAME --topology=GENERATION:AxB[xC] --image=IMAGE [OPTION ...] -- FLAG ...

Starts `internvideo-jax train` with the flags after -- on a GKE cluster with TPU node pools and JobSet
(`xpk cluster create` makes one), on every host of every slice. JobSet starts all of them again, from
the newest checkpoint, when one ends with anything but 0: on exit code 42 (preempted) too.

  --name=NAME          of the JobSet
  --topology=T         of the node pools, as of `internvideo-jax compile_report`
  --slices=N           node pools that work on the run (default: 1)
  --image=IMAGE        made by `docker build -f launch/tpu/Dockerfile .`
  --claim=CLAIM        PersistentVolumeClaim (ReadWriteMany, of Filestore), mounted at /mnt/work
  --bucket=BUCKET      mounted at /mnt/data to read from, by the cluster's Cloud Storage FUSE driver
  --service_account=A  of Kubernetes, which may read the bucket (default: default)
  --restarts=N         until it is given up, preemptions included (default: 20)
  --spot               node pools of spot machines
  --dry_run            print the manifest, start nothing

Logs: kubectl logs -f job/NAME-slice-0. Stop: kubectl delete jobset NAME.

With xpk itself, the same run is
  xpk workload create --cluster=CLUSTER --workload=NAME --tpu-type=v5litepod-256 --num-slices=1 \
    --docker-image=IMAGE --command="internvideo-jax train FLAG ..."

examples:
  gke.sh --name=stage1 --topology=v5e:16x16 --image=us-docker.pkg.dev/p/r/internvideo \
    --claim=work --bucket=my-clips -- --config=configs/stage1/pretrain.py:1b \
    --workdir=/mnt/work/runs/1b --config.data.shards=/mnt/data/shards \
    --config.stage.clip_teacher_path=/mnt/data/models/internvl \
    --config.stage.mae_teacher_path=/mnt/data/models/videomae
TEXT
}

topology="" slices=1 image="" claim="" bucket="" account=default restarts=20 spot=0
parse "$@"
for option in ${OPTIONS[@]+"${OPTIONS[@]}"}; do
  case $option in
    --topology=*) topology=${option#*=} ;;
    --slices=*) slices=${option#*=} ;;
    --image=*) image=${option#*=} ;;
    --claim=*) claim=${option#*=} ;;
    --bucket=*) bucket=${option#*=} ;;
    --service_account=*) account=${option#*=} ;;
    --restarts=*) restarts=${option#*=} ;;
    --spot) spot=1 ;;
    --config* | --workdir*) die "$option: expected the flags of train after --" ;;
    *) unknown "$option" ;;
  esac
done
need_name '--name=NAME, the name of the JobSet'
need '--topology=T, for example v5e:16x16' "$topology"
need '--image=IMAGE' "$image"
number --slices "$slices"
number --restarts "$restarts"
train_flags
slice "$topology"
case $GENERATION in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
esac
hosts=$((CHIPS / HOST_CHIPS))
mounts_bucket=false
[[ -z $bucket ]] || mounts_bucket=true

# A string of YAML, which takes JSON's.
yaml() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  local flag
  cat <<TEXT
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    # A slice is a node pool.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          completionMode: Indexed
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "$mounts_bucket"
            spec:
              serviceAccountName: $(yaml "$account")
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              # For the checkpoint after SIGTERM.
              terminationGracePeriodSeconds: 600
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $SIZES
TEXT
  ((!spot)) || echo '                cloud.google.com/gke-spot: "true"'
  cat <<TEXT
              containers:
                - name: train
                  image: $(yaml "$image")
                  command:
                    - internvideo-jax
                    - train
TEXT
  for flag in "${REST[@]}"; do
    printf '                    - %s\n' "$(yaml "$flag")"
  done
  cat <<TEXT
                  ports:
                    - containerPort: 8471
                    - containerPort: 8476
                  resources:
                    limits:
                      google.com/tpu: $HOST_CHIPS
                  volumeMounts:
                    - name: shared-memory
                      mountPath: /dev/shm
TEXT
  [[ -z $claim ]] || cat <<TEXT
                    - name: work
                      mountPath: /mnt/work
TEXT
  [[ -z $bucket ]] || cat <<TEXT
                    - name: data
                      mountPath: /mnt/data
                      readOnly: true
TEXT
  cat <<TEXT
              volumes:
                # Loading processes hand over their batches there.
                - name: shared-memory
                  emptyDir:
                    medium: Memory
TEXT
  [[ -z $claim ]] || cat <<TEXT
                - name: work
                  persistentVolumeClaim:
                    claimName: $(yaml "$claim")
TEXT
  [[ -z $bucket ]] || cat <<TEXT
                - name: data
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    readOnly: true
                    volumeAttributes:
                      bucketName: $(yaml "$bucket")
                      mountOptions: implicit-dirs
TEXT
}

if ((DRY_RUN)); then
  manifest
else
  manifest | call kubectl apply --filename=-
fi
