"""CADS, section by section of the method (Ye et al., IEEE TMI 2025, doi 10.1109/TMI.2024.3431916).

    section                                          file
    1  Data: sub-volumes of a scan                   pretraining/views/subvolumes.py
    2  Views: crops, intensity, uniform sampling     pretraining/views/make_views.py, intensity.py, uniform_sampling.py
    3  Encoder: PVTv2                                nnunetv2_cads/network_architecture/pvt_v2.py
    4  Student and teacher                           student_teacher.py
       Projection heads                              heads.py
       Loss and center                               loss.py
       Momentum of the teacher, its temperature      schedules.py
    5  Rates of each step                            schedules.py
       Weight decay groups, clipping                 optimisation.py
       The training step, which puts all together    pretrainer.py
    -  What a step reports about itself              diagnostics.py
    -  Restoration of corrupted crops (ours)         restoration.py; the crops: pretraining/views/corrupted_crops.py
    -  Distillation of their places (ours)           places.py
    -  Contrast of points (ours)                     points.py; the pairs of crops: pretraining/views/point_pairs.py

Start with `pretraining.method.pretrainer.Pretrainer.train_step`. The same, written without any thought of speed:
`pretraining.plain`.
"""
