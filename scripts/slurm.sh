#!/usr/bin/env bash
# Run the levels on a SLURM cluster: a job array, one participant a task, then the group and, where
# it is asked for, the comparison with CT perfusion.
#
#   scripts/slurm.sh BIDS_DIR OUTPUT_DIR [options of the participant level]
#
# The same command continues where jobs failed or were killed. From the environment:
#   APP            how to start the app (default: bids_perfdeficit), for example
#                  'apptainer run --containall -B /data -B /scratch bids_perfdeficit.sif'
#   SBATCH         options of sbatch for a participant (default: what the app's dry run asks for, by
#                  the headers of the scans; else 2 cores, 8 GB, 30 minutes)
#   SBATCH_GROUP   the same for the group (default: 2 cores, 16 GB, 2 hours)
#   SBATCH_EVALUATE   the same for the comparison (default: 2 cores, 8 GB, 2 hours)
#   GROUP          options of the group level, for example '--model spatial ridge'; 'no' for none
#   EVALUATE       options of the level evaluate, for example '--reference derivatives/*/*_tmax.nii.gz';
#                  a blank compares without one; unset, no comparison is run
#   CALIBRATE, SBATCH_CALIBRATE   the same for the level calibrate
#   AT_ONCE        participants at once (default: as many as the cluster gives)
set -euo pipefail

if [[ -z "${PERFDEFICIT_TASK:-}" ]]; then # on the login node: submit
    bids="$(realpath "${1:?BIDS_DIR is missing; see the head of this script}")"
    out="$(realpath -m "${2:?OUTPUT_DIR is missing; see the head of this script}")"
    logs="$out/logs/slurm-$(date +%Y%m%d-%H%M%S)-$$"
    mkdir -p "$logs"
    # A list made once: folders that come or go while jobs wait do not shift who is whose task.
    find "$bids" -mindepth 1 -maxdepth 1 -name 'sub-*' -printf '%f\n' | sort >"$logs/participants.txt"
    count="$(wc -l <"$logs/participants.txt")"
    if [[ "$count" -eq 0 ]]; then
        echo "$bids holds no folder sub-*; give a BIDS dataset" >&2
        exit 2
    fi
    # shellcheck disable=SC2086 # the app may be several words
    if [[ -z "${SBATCH:-}" ]]; then
        SBATCH="$(${APP:-bids_perfdeficit} "$bids" "$out" participant --dry-run "${@:3}" 2>/dev/null \
            | sed -nE 's/^a job for each participant: ([^(]*) \(.*/\1/p' || true)"
        SBATCH="${SBATCH:---cpus-per-task=2 --mem=8G --time=00:30:00}"
        echo "each participant: $SBATCH"
    fi
    export PERFDEFICIT_BIDS="$bids" PERFDEFICIT_OUT="$out" PERFDEFICIT_LIST="$logs/participants.txt"
    # shellcheck disable=SC2086 # options are several words
    array="$(PERFDEFICIT_TASK=participant sbatch --parsable --job-name perfdeficit \
        --array "1-$count${AT_ONCE:+%$AT_ONCE}" --output "$logs/%a.txt" --open-mode append \
        $SBATCH "$0" "${@:3}")"
    echo "participants: job $array, $count tasks, output in $logs"
    if [[ "${GROUP:-}" != no ]]; then
        # After any end: a failed participant does not prevent the group level.
        # shellcheck disable=SC2086
        group="$(PERFDEFICIT_TASK=group sbatch --parsable --job-name perfdeficit-group \
            --dependency "afterany:${array%%;*}" --output "$logs/group.txt" \
            ${SBATCH_GROUP:---cpus-per-task=2 --mem=16G --time=02:00:00} "$0" ${GROUP:-})"
        echo "group: job $group"
    fi
    # One after the other: both work in the folders of all participants.
    after="afterany:${array%%;*}"
    for level in evaluate calibrate; do
        options="${level^^}" how="SBATCH_${level^^}"
        if [[ -n "${!options:-}" ]]; then
            # Patterns are for the app: `set -f` keeps the shell from expanding them.
            set -f
            # shellcheck disable=SC2086
            job="$(PERFDEFICIT_TASK=$level sbatch --parsable --job-name "perfdeficit-$level" \
                --dependency "$after" --output "$logs/$level.txt" \
                ${!how:---cpus-per-task=2 --mem=8G --time=02:00:00} "$0" ${!options})"
            after="$after:${job%%;*}"
            echo "$level: job $job"
        fi
    done
    exit 0
fi

# In a job. `exec`, so that the signal with which SLURM announces the end reaches the app itself.
# shellcheck disable=SC2206
app=(${APP:-bids_perfdeficit})
if [[ "$PERFDEFICIT_TASK" != participant ]]; then
    exec "${app[@]}" "$PERFDEFICIT_BIDS" "$PERFDEFICIT_OUT" "$PERFDEFICIT_TASK" "$@"
fi
label="$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$PERFDEFICIT_LIST")"
exec "${app[@]}" "$PERFDEFICIT_BIDS" "$PERFDEFICIT_OUT" participant --participant-label "$label" "$@"
